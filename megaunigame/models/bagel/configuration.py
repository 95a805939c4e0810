"""config.json of a BAGEL folder, and the configurations of a release.

A release has `llm_config.json` and `vit_config.json` and says nothing about the rest, which is known; its config.json is not
read. Folders of other sizes have everything in config.json::

    {"model_type": "bagel", "text_config": {...}, "vision_config": {...}, "vae_config": {...}, "latent_patch_size": 2,
     "max_latent_size": 64, "vit_max_num_patch_per_side": 70, "flow": {...}}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import Qwen2Config, SiglipVisionConfig

from megaunigame.errors import ModelError
from megaunigame.models.autoencoder_check import check_scale
from megaunigame.models.bagel.guiding import RENORMS, Guidance
from megaunigame.models.shapes import check_channels, read_shape
from megaunigame.models.vqgan.layers import Sizes
from megaunigame.models.weights.settings_files import (
    config_from,
    is_number,
    is_whole,
    read_config_file,
    read_settings,
    read_whole,
    write_settings_file,
)
from megaunigame.registry import unknown
from megaunigame.storage.foreign_text import quoted

MODEL_TYPE = "bagel"
LANGUAGE, VISION = "llm_config.json", "vit_config.json"
"""Configurations of a release."""
RELEASED = Path(__file__).with_name("7b.json")
LAYER_MODULE = "Qwen2MoTDecoderLayer"
"""What a release may call its layers."""
COUNTS = ("latent_patch_size", "max_latent_size", "vit_max_num_patch_per_side")
VAE_KEYS = {"base_channels", "multipliers", "blocks", "channels", "scale", "shift"}
MOST_LAYERS = 96
"""Of the language model: groups of parameters name every layer."""


@dataclass(frozen=True)
class Flow:
    """Times of training and sampling, and guidance."""

    train_shift: float = 1.0
    sample_shift: float = 3.0
    sample_points: int = 50
    """Times from 1 to 0; one step less is taken."""
    start: float = 0.4
    """Without a source picture, steps are guided at times above it."""
    renorm: str = "global"
    edit_start: float = 0.0
    edit_renorm: str = "text_channel"
    edit_scale: float = 2.0
    """Guidance by the source picture."""
    renorm_min: float = 0.0
    decode_time: float = 0.7
    """Time at which `decode` predicts, in one step, the change by a perturbation."""

    def check(self) -> None:
        """Raises ModelError for a value that is not legal."""
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if entry.name not in ("renorm", "edit_renorm") and not is_number(value):
                raise ModelError(f"flow.{entry.name}={quoted(value)} must be a number.")
        for name in ("train_shift", "sample_shift"):
            if not getattr(self, name) > 0:
                raise ModelError(f"flow.{name}={getattr(self, name)!r}: a shift must be above 0.")
        for name in ("start", "edit_start", "renorm_min"):
            if not 0 <= getattr(self, name) <= 1:
                raise ModelError(f"flow.{name}={getattr(self, name)!r} must lie in [0, 1].")
        if not 0 < self.decode_time <= 1:
            raise ModelError(f"flow.decode_time={self.decode_time!r} must lie in (0, 1].")
        if not is_whole(self.sample_points) or self.sample_points < 2:
            raise ModelError(f"flow.sample_points={self.sample_points!r} must be a whole number, 2 or more.")
        for renorm in (self.renorm, self.edit_renorm):
            if renorm not in RENORMS:
                raise ModelError(unknown("flow.renorm", str(renorm), list(RENORMS)))

    def guidance(self, scale: float, source: bool) -> Guidance:
        """Of requests with or without a source picture, with this scale of the text."""
        if source:
            return Guidance(scale, self.edit_scale, self.edit_start, self.edit_renorm, self.renorm_min)
        return Guidance(scale, 1.0, self.start, self.renorm, self.renorm_min)


@dataclass
class BagelConfig:
    """Raises ModelError when the parts do not fit each other."""

    text: Qwen2Config
    vision: SiglipVisionConfig
    """With as many layers as are built: one less than vit_config.json says."""
    vae: dict[str, Any]
    """Sizes of the autoencoder, and the scale and shift of its latents."""
    latent_patch_size: int = 2
    max_latent_size: int = 64
    """Latent tokens along the edge of the largest picture."""
    vit_max_num_patch_per_side: int = 70
    """Patches along the edge of the largest picture that is understood."""
    flow: Flow = field(default_factory=Flow)

    def __post_init__(self) -> None:
        self.flow.check()
        self.text.tie_word_embeddings = False
        self._check_autoencoder()
        if self.text.num_hidden_layers > MOST_LAYERS:
            raise ModelError(f"num_hidden_layers={self.text.num_hidden_layers}; a BAGEL has at most {MOST_LAYERS}.")
        if self.text.hidden_size % 4:
            raise ModelError(f"hidden_size={self.text.hidden_size} must be a multiple of 4: positions are sines and cosines.")
        read_whole(self.vision.to_dict(), "patch_size", 0, Path("vision_config"))
        if self.vision.num_hidden_layers < 1:
            raise ModelError("The vision tower has no layer; vit_config.json of a release names one more than is built.")

    def _check_autoencoder(self) -> None:
        if set(self.vae) != VAE_KEYS:
            raise ModelError(f"vae_config has the keys {sorted(self.vae)}; it must have {sorted(VAE_KEYS)}.")
        for name in ("base_channels", "blocks", "channels"):
            if not is_whole(self.vae[name]) or self.vae[name] < 1:
                raise ModelError(f"vae_config.{name}={quoted(self.vae[name])} must be a whole number, 1 or more.")
        check_channels(self.vae["base_channels"])
        multipliers = self.vae["multipliers"]
        if not isinstance(multipliers, list) or not multipliers or not all(is_whole(n) and n > 0 for n in multipliers):
            raise ModelError(f"vae_config.multipliers={quoted(multipliers)} must be a list of whole numbers, 1 or more.")
        check_scale("vae_config", self.vae, read_shape(RELEASED)["vae_config"], "scale", "shift")

    def get_text_config(self) -> Qwen2Config:
        """The configuration of the language model, as in transformers' configurations."""
        return self.text

    @property
    def width(self) -> int:
        """D: width of the language model."""
        return self.text.hidden_size

    @property
    def cell(self) -> int:
        """Pixels of a latent token along an edge."""
        return self.latent_patch_size * 2 ** (len(self.vae["multipliers"]) - 1)

    @property
    def latent_width(self) -> int:
        """Numbers of a latent token."""
        return self.vae["channels"] * self.latent_patch_size**2

    def autoencoder_sizes(self) -> tuple[Sizes, Sizes]:
        """Of the autoencoder's encoder, which gives means and variances, and decoder."""
        vae, multipliers = self.vae, tuple(self.vae["multipliers"])
        encoder, decoder = (
            Sizes(vae["base_channels"], multipliers, (blocks,) * len(multipliers), frozenset(), latent=channels)
            for blocks, channels in ((vae["blocks"], 2 * vae["channels"]), (vae["blocks"] + 1, vae["channels"]))
        )
        return encoder, decoder

    def to_dict(self) -> dict[str, Any]:
        return {
            "model_type": MODEL_TYPE,
            "text_config": self.text.to_dict(),
            "vision_config": self.vision.to_dict(),
            "vae_config": self.vae,
            **{name: getattr(self, name) for name in COUNTS},
            "flow": dataclasses.asdict(self.flow),
        }

    def write(self, folder: Path) -> None:
        """Write `folder`/config.json."""
        write_settings_file(folder / "config.json", self.to_dict())


def read_config(path: str | Path) -> BagelConfig:
    """The configuration of the model folder `path`. Raises ModelError for another family or an incomplete file."""
    folder = Path(path)
    if (folder / LANGUAGE).is_file():
        return _of_release(folder)
    file = folder / "config.json"
    raw = read_config_file(file, "Give a BAGEL folder, such as the release BAGEL-7B-MoT, with its llm_config.json.")
    if raw.get("model_type") != MODEL_TYPE:
        raise ModelError(
            f"{file} describes model_type {raw.get('model_type')!r}; a BAGEL folder has {MODEL_TYPE!r}, or {LANGUAGE} and "
            f"{VISION} of a release."
        )
    missing = [name for name in ("text_config", "vision_config", "vae_config") if not isinstance(raw.get(name), dict)]
    if missing:
        raise ModelError(f"{file} has no {', '.join(missing)}, which a BAGEL configuration has.")
    return config_of(raw, file)


def _of_release(folder: Path) -> BagelConfig:
    """From the two configurations of a release. Its vision tower has one layer less than its file says."""
    language, vision = read_settings(folder / LANGUAGE), read_config_file(folder / VISION, f"It goes with {LANGUAGE}.")
    _check_layers(language, folder / LANGUAGE)
    if language.get("tie_word_embeddings"):
        language = {**language, "tie_word_embeddings": False}  # as the official code sets it
    if not is_whole(vision.get("num_hidden_layers")):
        raise ModelError(f"{folder / VISION} has no whole number num_hidden_layers.")
    vision = {**vision, "num_hidden_layers": vision["num_hidden_layers"] - 1}
    text = config_from(Qwen2Config, language, folder / LANGUAGE)
    shape = read_shape(RELEASED)
    counts = {name: shape[name] for name in COUNTS}
    return BagelConfig(text, config_from(SiglipVisionConfig, vision, folder / VISION), shape["vae_config"], **counts)


def _check_layers(language: Mapping[str, Any], file: Path) -> None:
    """Raises ModelError for a language model with other layers than the published ones."""
    module, norm = language.get("layer_module", LAYER_MODULE), language.get("qk_norm", True)
    if module != LAYER_MODULE or norm is not True:
        raise ModelError(
            f"{file} has layer_module {quoted(module)} and qk_norm {quoted(norm)}; a BAGEL has {LAYER_MODULE!r} and true. "
            "Other layouts of experts have no code here."
        )


def config_of(raw: dict[str, Any], file: Path) -> BagelConfig:
    """The configuration that `raw`, the content of `file`, describes; counts and flow have defaults."""
    given = raw.get("flow", {})
    if not isinstance(given, dict) or set(given) - {f.name for f in dataclasses.fields(Flow)}:
        legal = ", ".join(f.name for f in dataclasses.fields(Flow))
        raise ModelError(f"{file}: flow={given!r} must be an object with some of {legal}.")
    _check_layers(raw["text_config"], file)
    text = config_from(Qwen2Config, raw["text_config"], file)
    vision = config_from(SiglipVisionConfig, raw["vision_config"], file)
    released = read_shape(RELEASED)
    counts = {name: read_whole(raw, name, released[name], file) for name in COUNTS}
    try:
        return BagelConfig(text, vision, raw["vae_config"], **counts, flow=Flow(**given))
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error
