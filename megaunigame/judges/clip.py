"""A frozen CLIP: picture and text embeddings whose cosine measures how much they resemble each other.

Used by the adversary's plausibility filter and by data preparation; both name its settings `clip.model` and `clip.pretrained`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor
from torchvision.transforms import Resize

from megaunigame.errors import ConfigError
from megaunigame.registry import nearest

TINY_RANDOM = "tiny-random"
CONFIG_FILE = "open_clip_config.json"
TOKENIZER_FILE = "tokenizer_config.json"
WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
)
TINY_MODEL: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"width": 32, "layers": 1, "heads": 2},
}
TINY_SEED = 0
Source = tuple[str, str | None, dict[str, Any] | None]
"""What open_clip calls a CLIP, an architecture or `local-dir:FOLDER`; its weights, a file or a tag (None: the folder's own);
and what overrides the preprocessing of the architecture. All names and files are checked."""
HOW_TO_GET_WEIGHTS = (
    "On a machine with a network download the model's repository from the Hugging Face hub (open_clip_config.json, "
    "open_clip_model.safetensors, the tokenizer's files) and give its folder, `model: /path/to/folder`, without `pretrained`; "
    "or its weights alone, `pretrained: /path/to/open_clip_model.safetensors`"
)


class FrozenClip:
    """A frozen CLIP in float32. Not a module: its weights must never enter the engine's tree."""

    def __init__(self, model: str, pretrained: str, texts: bool, device: torch.device):
        """Load the weights and move them to `device`; `texts`: a tokenizer is needed too.

        `model` and `pretrained` are those of `ClipConfig` (judges/clip_filter.py). Raises ConfigError for an unknown
        architecture or tag and for missing files (both before loading), and when the hub cannot be reached or the weights
        belong to another architecture.
        """
        name, weights, preprocessing = _find(model, pretrained, texts)
        self.tokenizer = None
        try:  # offline (HF_HUB_OFFLINE), the hub's client uses its cache only
            if model == TINY_RANDOM:
                built = _tiny_random()
            else:
                options = {"precision": "fp32", "require_pretrained": True, "pretrained_text": False}
                built = open_clip.create_model(name, weights, force_preprocess_cfg=preprocessing, **options)
            if texts:
                self.tokenizer = open_clip.SimpleTokenizer() if model == TINY_RANDOM else open_clip.get_tokenizer(name)
        except Exception as error:  # open_clip asserts; hub, safetensors and torch.load each raise their own errors
            raise ConfigError(f"CLIP {model!r} cannot be loaded: {error}. {HOW_TO_GET_WEIGHTS}.") from error
        self.model = built.to(device).eval().requires_grad_(False)
        self.device = device
        preprocess = PreprocessCfg(**self.model.visual.preprocess_cfg)
        if preprocess.resize_mode == "longest":
            raise ConfigError(f"CLIP {model!r} pads its pictures (resize_mode: longest); legal: shortest, squash.")
        self._transform = image_transform_v2(preprocess, is_train=False).transforms

    def to(self, device: torch.device) -> FrozenClip:
        """Move the weights; returns itself."""
        self.model, self.device = self.model.to(device), device
        return self

    def preprocess(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> the normalized input (B, 3, h, w) of the image tower. Differentiable.

        The same steps as open_clip's for files, without the rounding to bytes.
        """
        pictures = (pictures.float() + 1) / 2
        for step in self._transform:
            if isinstance(step, Resize):
                pictures = _resized(step, pictures).clamp(0, 1)  # bicubic overshoots at edges; bytes cannot
            else:
                pictures = step(pictures)
        return pictures

    def embed_inputs(self, inputs: Tensor) -> Tensor:
        """(B, D) unit vectors of the output of `preprocess`. Differentiable."""
        return F.normalize(self.model.encode_image(inputs), dim=-1)

    def embed_texts(self, texts: list[str]) -> Tensor:
        """(B, D) unit vectors; texts longer than the model reads are cut. Raises ValueError without a tokenizer."""
        if self.tokenizer is None:
            raise ValueError("This CLIP was loaded without its tokenizer; give `texts=True`.")
        return F.normalize(self.model.encode_text(self.tokenizer(texts).to(self.device)), dim=-1)


def _resized(resize: Resize, pictures: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, h, w) as `resize` does it, as two products of matrices.

    Resampling is linear and separable. The backward of torch's own kernel is not deterministic on a GPU.
    """
    height, width = pictures.shape[-2:]
    shorter = min(height, width)
    size = [resize.size * edge // shorter for edge in (height, width)] if isinstance(resize.size, int) else resize.size
    mode = resize.interpolation.value
    down, across = (_resampling(n, m, mode).to(pictures) for n, m in zip((height, width), size, strict=True))
    return down @ pictures @ across.T


def _resampling(length: int, size: int, mode: str) -> Tensor:
    """(size, length): an edge of `length` pixels -> one of `size`, antialiased."""
    return F.interpolate(torch.eye(length)[None, None], (size, length), mode=mode, antialias=True, align_corners=False)[0, 0]


def clip_elements(model: str) -> int:
    """Elements of the CLIP called `model` (that of `ClipConfig`), from its architecture alone.

    Raises ConfigError for an architecture that open_clip does not know.
    """
    with torch.device("meta"):
        if model == TINY_RANDOM:
            built = open_clip.model.CLIP(**TINY_MODEL)
        elif Path(model).is_dir():
            built = open_clip.model.CLIP(**_read_config(Path(model) / CONFIG_FILE)["model_cfg"])
        elif model in open_clip.list_models():
            config = open_clip.get_model_config(model)
            kind = open_clip.model.CustomTextCLIP if config.pop("custom_text", False) else open_clip.model.CLIP
            built = kind(**config)
        else:
            raise ConfigError(
                f"clip.model: no folder and no open_clip architecture {model!r}."
                f"{nearest(model, [TINY_RANDOM, *open_clip.list_models()])}"
            )
    return sum(parameter.numel() for parameter in built.parameters())


def _tiny_random() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TINY_SEED)
        model = open_clip.model.CLIP(**TINY_MODEL)
    open_clip.model.set_model_preprocess_cfg(model, vars(PreprocessCfg(size=TINY_MODEL["vision_cfg"]["image_size"])))
    return model


def _find(model: str, pretrained: str, texts: bool) -> Source:
    folder = Path(model)
    if (model == TINY_RANDOM or folder.is_dir()) and pretrained:
        raise ConfigError(f"clip.model={model} brings its own weights; leave clip.pretrained empty (got {pretrained!r}).")
    if model == TINY_RANDOM:
        return model, None, None
    if folder.is_dir():
        _check_folder(folder, texts)
        return f"local-dir:{folder}", None, None
    architectures = open_clip.list_models()
    if model not in architectures:
        raise ConfigError(
            f"clip.model: no folder and no open_clip architecture {model!r}.{nearest(model, [TINY_RANDOM, *architectures])} "
            f"Legal: {TINY_RANDOM}, a folder with {CONFIG_FILE}, or one of {len(architectures)} architectures, which "
            "`python -c 'import open_clip; print(open_clip.list_models())'` lists."
        )
    if not pretrained:
        raise ConfigError(f"clip.pretrained is empty, but {model} is an architecture without weights. {HOW_TO_GET_WEIGHTS}.")
    return _weights_of(model, pretrained)


def _check_folder(folder: Path, texts: bool) -> None:
    """Raises ConfigError for missing files: open_clip would notice late, or build a random model instead."""
    model = _read_config(folder / CONFIG_FILE)["model_cfg"]
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise ConfigError(f"CLIP folder {folder} has no weights; looked for {', '.join(WEIGHT_FILES)}. {HOW_TO_GET_WEIGHTS}.")
    wants_tokenizer = texts and "hf_tokenizer_name" in model["text_cfg"]
    if wants_tokenizer and not (folder / TOKENIZER_FILE).is_file():
        raise ConfigError(
            f"Pictures are compared with texts, but CLIP folder {folder} has no {TOKENIZER_FILE}. {HOW_TO_GET_WEIGHTS}."
        )


def _weights_of(model: str, pretrained: str) -> Source:
    """A file, the weights in a folder, or a tag that open_clip knows."""
    path = Path(pretrained)
    if path.is_dir():
        files = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if not files:
            raise ConfigError(f"clip.pretrained: no CLIP weights in {path}; looked for {', '.join(WEIGHT_FILES)}.")
        path = files[0]
    if path.is_file():
        # Mean and deviation belong to the weights, not to the architecture; a hub folder has them next to the weights.
        config = path.parent / CONFIG_FILE
        return model, str(path), _read_config(config)["preprocess_cfg"] if config.is_file() else None
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained not in tags:
        raise ConfigError(
            f"clip.pretrained: no file, no folder and no tag {pretrained!r} of {model}.{nearest(pretrained, tags)} "
            f"Tags (need a network): {', '.join(tags) or 'none'}. {HOW_TO_GET_WEIGHTS}."
        )
    return model, pretrained, None


def _read_config(path: Path) -> dict[str, Any]:
    """open_clip_config.json: `model_cfg` (with `text_cfg`) and `preprocess_cfg`."""
    try:
        config = json.loads(path.read_text())
        missing = {"model_cfg", "preprocess_cfg"} - set(config)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a readable open_clip configuration ({error}). {HOW_TO_GET_WEIGHTS}.") from error
    if missing:
        raise ConfigError(f"{path} lacks {', '.join(sorted(missing))}. {HOW_TO_GET_WEIGHTS}.")
    return config
