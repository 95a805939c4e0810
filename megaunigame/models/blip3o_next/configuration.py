"""config.json of a BLIP3o-NEXT folder: the release's, which is Qwen3's with ids of tokens, and what the release does not say.

The release names repositories where SANA, its autoencoder and the vision tokenizer come from. Here their sizes stand in the
same file, with the settings of the flow; a file without them, as released, means the sizes of `3b.json`::

    {"model_type": "blip3o_qwen", (Qwen3 ...), "image_start_tag_id": ..., "image_start_token_id": ...,
     "num_image_tokens": 65536, "image_size": 1024, "sana": {...}, "vae": {...}, "vq_config": {...}, "flow": {...},
     "choice": {"top_k": 1200, "top_p": 0.95}}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers import Qwen3Config

from megaunigame.errors import ModelError
from megaunigame.models.autoencoder_check import check_scale
from megaunigame.models.blip3o_next.vq import VisionConfig
from megaunigame.models.diffusion.flow import Flow
from megaunigame.models.diffusion.modules import check_fit, downsampling
from megaunigame.models.shapes import read_shape
from megaunigame.models.weights.settings_files import config_from, is_whole, read_config_file, read_whole, write_settings_file
from megaunigame.storage.foreign_text import quoted

MODEL_TYPE = "blip3o_qwen"
MODEL_TYPES = (MODEL_TYPE, "blip3o_qwen_inference", "blip3o_qwen_grpo")
"""Written by the official training, inference and reinforcement learning."""
RELEASED = Path(__file__).with_name("3b.json")
IDS = ("image_start_tag_id", "image_end_tag_id", "scale_start_token_id", "image_start_token_id")
SCALES = 3
"""Tokens of scales, of which the release uses the first."""
OTHER_PARTS = ("image_size", "sana", "vae", "vq_config", "flow", "choice")
T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """How a code is drawn at a temperature above 0: among the `top_k` likeliest, of which the likeliest make up `top_p`."""

    top_k: int = 1200
    top_p: float = 0.95

    def check(self) -> None:
        """Raises ModelError for a number that is not legal."""
        if not is_whole(self.top_k) or self.top_k < 1:
            raise ModelError(f"choice.top_k must be a whole number, at least 1; got {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise ModelError(f"choice.top_p must lie in (0, 1]; got {self.top_p}.")


@dataclass
class Blip3oNextConfig:
    """Raises ModelError when the parts do not fit each other."""

    text_config: Qwen3Config
    ids: dict[str, int]
    """`IDS` -> ids."""
    image_size: int
    """Side of generated pictures, in pixels."""
    sana: dict[str, Any]
    """Arguments of diffusers' SanaTransformer2DModel."""
    vae: dict[str, Any]
    """Arguments of diffusers' AutoencoderDC."""
    vq_config: VisionConfig
    flow: Flow
    choice: Choice

    def __post_init__(self) -> None:
        self.flow.check()
        self.choice.check()
        self.vq_config.check()
        check_fit(self.sana, self.vae, self.image_size)
        if "scaling_factor" in self.vae:
            check_scale("vae", self.vae, read_shape(RELEASED)["vae"], "scaling_factor")
        text, codes = self.text_config, self.vq_config.codebook_size
        if not text.tie_word_embeddings:
            raise ModelError(
                "tie_word_embeddings is false in the configuration of the language model; in BLIP3o-NEXT it is true."
            )
        last = self.ids["image_start_token_id"] + codes - 1
        if last >= text.vocab_size:
            raise ModelError(
                f"vocab_size={text.vocab_size} ends before the last of {codes} codes, which begin at image_start_token_id="
                f"{self.ids['image_start_token_id']}; write at least {last + 1}."
            )

    def get_text_config(self) -> Qwen3Config:
        """The configuration of the language model, as in transformers' configurations."""
        return self.text_config

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        side = self.image_size // downsampling(self.vae)
        return self.vae["latent_channels"], side, side

    @property
    def caption_width(self) -> int:
        """Width of the condition the transformer reads."""
        return self.sana["caption_channels"]  # type: ignore[no-any-return]

    def to_dict(self) -> dict[str, Any]:
        parts = {
            "image_size": self.image_size,
            "sana": self.sana,
            "vae": self.vae,
            "vq_config": dataclasses.asdict(self.vq_config),
            "flow": dataclasses.asdict(self.flow),
            "choice": dataclasses.asdict(self.choice),
        }
        text = self.text_config.to_dict() | {"model_type": MODEL_TYPE, "architectures": ["blip3oQwenForCausalLM"]}
        counts = {"num_image_tokens": self.vq_config.codebook_size, "num_scale_tokens": SCALES}
        return text | self.ids | counts | parts

    def write(self, folder: Path) -> None:
        """Write `folder`/config.json."""
        write_settings_file(folder / "config.json", self.to_dict())


def read_config(path: str | Path) -> Blip3oNextConfig:
    """The configuration of the model folder `path`. Raises ModelError for another family or an incomplete file."""
    file = Path(path) / "config.json"
    raw = read_config_file(file, "Give a BLIP3o-NEXT folder, such as BLIP3o/BLIP3o-NEXT-SFT.")
    kind = raw.get("model_type")
    if kind not in MODEL_TYPES:
        raise ModelError(f"{file} describes model_type {kind!r}; a BLIP3o-NEXT folder has {MODEL_TYPE!r}.")
    absent = [name for name in IDS if name not in raw]
    if absent:
        raise ModelError(f"{file} has no {absent[0]!r} where an official BLIP3o-NEXT configuration has one.")
    released = read_shape(RELEASED)
    parts = {name: raw.pop(name, released[name]) for name in OTHER_PARTS}
    for name in OTHER_PARTS[1:]:
        if not isinstance(parts[name], dict):
            raise ModelError(f"{file}: {name}={quoted(parts[name])} must be an object.")
    vision = _filled(VisionConfig, parts["vq_config"], "vq_config", file)
    codes = read_whole(raw, "num_image_tokens", vision.codebook_size, file)
    if codes != vision.codebook_size:
        raise ModelError(f"{file} has num_image_tokens={codes}, and a vision tokenizer of {vision.codebook_size} codes.")
    return Blip3oNextConfig(
        text_config=config_from(Qwen3Config, {**raw, "model_type": "qwen3"}, file),
        ids={name: read_whole(raw, name, 0, file) for name in IDS},
        image_size=read_whole(parts, "image_size", 0, file),
        sana=_with("in_channels", parts["sana"], "sana", file)
        | {"caption_channels": read_whole(parts["sana"], "caption_channels", 0, file)},
        vae=_with("latent_channels", parts["vae"], "vae", file),
        vq_config=vision,
        flow=_filled(Flow, parts["flow"], "flow", file),
        choice=_filled(Choice, parts["choice"], "choice", file),
    )


def _filled(kind: type[T], values: Mapping[str, Any], name: str, file: Path) -> T:
    """A dataclass of numbers. Raises ModelError for other keys than its own, and for a value that is not a number."""
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if set(values) != known:
        raise ModelError(f"{file}: {name} has {', '.join(sorted(values))}; it must have {', '.join(sorted(known))}.")
    for key, value in values.items():
        if type(value) not in (int, float):
            raise ModelError(f"{file}: {name}.{key}={quoted(value)} must be a number.")
    return kind(**values)


def _with(key: str, values: dict[str, Any], name: str, file: Path) -> dict[str, Any]:
    """`values`. Raises ModelError when they lack `key`."""
    if key not in values:
        raise ModelError(f"{file}: {name} has no {key!r}; copy the settings of diffusers' module there.")
    return values
