"""config.json of a Harmon folder: the configurations of its parts, and the settings of drawing.

The layout is ours: the official repository has its sizes in Python::

    {"model_type": "harmon", "image_size": 512, "source_size": 512, "llm": {...}, "mar": {...}, "autoencoder": {...},
     "drawing": {...}}
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import Qwen2Config

from megaunigame.errors import ModelError
from megaunigame.models.autoencoder_check import check_scale
from megaunigame.models.shapes import check_channels, read_shape
from megaunigame.models.vqgan.layers import Sizes, attention_levels
from megaunigame.models.weights.settings_files import CODE, config_from, is_whole, read_config_file, write_settings_file
from megaunigame.registry import unknown

MODEL_TYPE = "harmon"
RELEASED = Path(__file__).with_name("1_5b.json")
CONSTANT, LINEAR = "constant", "linear"
MAR_WHOLE = (
    *("image_size", "width", "encoder_layers", "decoder_layers", "heads", "mlp_ratio", "buffers"),
    *("head_width", "head_layers"),
)
MAR_KEYS = (*MAR_WHOLE, "dropout")
AUTOENCODER_WHOLE = ("base_channels", "blocks", "latent_channels", "resolution")
AUTOENCODER_LISTS = ("multipliers", "attention_resolutions")
AUTOENCODER_KEYS = (*AUTOENCODER_WHOLE, *AUTOENCODER_LISTS, "scaling_factor")


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn, in training and in sampling."""

    least_masked: float = 0.7
    """The masked share of a picture in training is drawn from a normal distribution, mean 1 and deviation .25, between this
    and 1."""
    copies: int = 4
    """Noise levels of each masked token in one training row."""
    rounds: int = 64
    """Rounds of the language model in which a picture is drawn."""
    noise_steps: int = 100
    """Steps of the diffusion head in each round."""
    guidance_schedule: str = CONSTANT
    """`constant`, or `linear`: guidance grows with the tokens drawn so far."""
    decode_level: int = 500
    """Noise level (of 1000) from which `decode` predicts the change by a perturbation in one step."""
    start_level: int = 900
    """The level from which `decode` predicts a whole picture in one step. At 999 the prediction is 2e4 times the error."""
    understanding_gradient: float = 0.1
    """Factor on the gradient of an understand row into the encoder."""

    def check(self) -> None:
        """Raises ModelError for a number that is not legal."""
        for name in ("least_masked", "understanding_gradient"):
            if type(getattr(self, name)) not in (int, float):
                raise ModelError(f"drawing.{name} must be a number; got {getattr(self, name)!r}.")
        if not 0 < self.least_masked <= 1:
            raise ModelError(f"drawing.least_masked must lie in (0, 1]; got {self.least_masked}.")
        for name in ("copies", "rounds", "noise_steps"):
            if not is_whole(getattr(self, name)) or getattr(self, name) < 1:
                raise ModelError(f"drawing.{name} must be a whole number, 1 or more; got {getattr(self, name)!r}.")
        if self.noise_steps > 1000:
            raise ModelError(f"drawing.noise_steps must be at most 1000, the levels of training; got {self.noise_steps}.")
        if self.guidance_schedule not in (CONSTANT, LINEAR):
            raise ModelError(unknown("drawing.guidance_schedule", self.guidance_schedule, [CONSTANT, LINEAR]))
        for name in ("decode_level", "start_level"):
            if not is_whole(getattr(self, name)) or not 0 < getattr(self, name) < 1000:
                raise ModelError(f"drawing.{name} must be a whole number from 1 to 999; got {getattr(self, name)!r}.")
        if not 0 <= self.understanding_gradient <= 1:
            raise ModelError(f"drawing.understanding_gradient must lie in [0, 1]; got {self.understanding_gradient}.")


@dataclass
class HarmonConfig:
    """Raises ModelError when the parts do not fit each other."""

    llm: Qwen2Config
    mar: dict[str, Any]
    """Masked autoencoder: `MAR_KEYS`. `image_size`: of the pictures for which it has positions; others are interpolated."""
    autoencoder: dict[str, Any]
    """KL autoencoder: `AUTOENCODER_KEYS`."""
    image_size: int = 512
    """Side of generated pictures, in pixels."""
    source_size: int = 512
    """Side of source pictures."""
    drawing: Drawing = field(default_factory=Drawing)

    def __post_init__(self) -> None:
        self.drawing.check()
        self._check_parts()
        check_channels(self.autoencoder["base_channels"])
        if not self.llm.tie_word_embeddings:
            raise ModelError("llm.tie_word_embeddings must be true: Harmon's language models read and write with one matrix.")
        if self.mar["width"] % self.mar["heads"]:
            raise ModelError(f"mar.width={self.mar['width']} is not a multiple of mar.heads={self.mar['heads']}.")
        for name, side in {
            "image_size": self.image_size,
            "source_size": self.source_size,
            "mar.image_size": self.mar["image_size"],
        }.items():
            if not is_whole(side) or side < self.cell or side % self.cell:
                raise ModelError(f"{name}={side} is not a multiple of {self.cell}, the pixels of one token along an edge.")

    def _check_parts(self) -> None:
        for part, legal in (("mar", MAR_KEYS), ("autoencoder", AUTOENCODER_KEYS)):
            given = getattr(self, part)
            if not isinstance(given, dict) or set(given) != set(legal):
                keys = ", ".join(sorted(given)) if isinstance(given, dict) else repr(given)
                raise ModelError(f"{part} has {keys}; it must have {', '.join(sorted(legal))}.")
        for part, names in (("mar", MAR_WHOLE), ("autoencoder", AUTOENCODER_WHOLE)):
            for name in names:
                value = getattr(self, part)[name]
                if not is_whole(value) or value < 1:
                    raise ModelError(f"{part}.{name} must be a whole number, 1 or more; got {value!r}.")
        for name in AUTOENCODER_LISTS:
            value = self.autoencoder[name]
            if not isinstance(value, list) or not all(is_whole(n) and n > 0 for n in value):
                raise ModelError(f"autoencoder.{name} must be a list of whole numbers, 1 or more; got {value!r}.")
        if not self.autoencoder["multipliers"]:
            raise ModelError("autoencoder.multipliers must have an entry for each resolution; it is empty.")
        check_scale("autoencoder", self.autoencoder, read_shape(RELEASED)["autoencoder"], "scaling_factor")
        dropout = self.mar["dropout"]
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ModelError(f"mar.dropout must lie in [0, 1); got {dropout!r}.")

    def get_text_config(self) -> Qwen2Config:
        """The configuration of the language model, as in transformers' configurations."""
        return self.llm

    @property
    def width(self) -> int:
        """D: width of the language model."""
        return self.llm.hidden_size

    @property
    def cell(self) -> int:
        """Pixels of one token along an edge."""
        return 2 ** (len(self.autoencoder["multipliers"]) - 1)

    @property
    def buffers(self) -> int:
        """K: tokens of a picture that stand for no place of it."""
        return self.mar["buffers"]

    @property
    def channels(self) -> int:
        """C: channels of a latent."""
        return self.autoencoder["latent_channels"]

    @property
    def side(self) -> int:
        """Tokens of a generated picture along an edge."""
        return self.image_size // self.cell

    @property
    def tokens(self) -> int:
        """N: tokens of a generated picture, without buffers."""
        return self.side**2

    @property
    def source_tokens(self) -> int:
        """Tokens of a source picture in the sequence, with buffers."""
        return (self.source_size // self.cell) ** 2 + self.buffers

    @property
    def native_side(self) -> int:
        """Side of the grid for which the autoencoder has positions."""
        return self.mar["image_size"] // self.cell

    def autoencoder_sizes(self) -> tuple[Sizes, Sizes]:
        """Of encoder and decoder. Only the encoder attends outside of its middle; the decoder has one block more per level."""
        sizes = self.autoencoder
        multipliers = tuple(sizes["multipliers"])
        levels = len(multipliers)
        attention = attention_levels(sizes["resolution"], sizes["attention_resolutions"], levels)
        common = sizes["base_channels"], multipliers
        encoder = Sizes(*common, (sizes["blocks"],) * levels, attention, latent=2 * self.channels)
        return encoder, Sizes(*common, (sizes["blocks"] + 1,) * levels, frozenset(), latent=self.channels)

    def to_dict(self) -> dict[str, Any]:
        return {
            "model_type": MODEL_TYPE,
            "image_size": self.image_size,
            "source_size": self.source_size,
            "llm": self.llm.to_dict(),
            "mar": self.mar,
            "autoencoder": self.autoencoder,
            "drawing": dataclasses.asdict(self.drawing),
        }

    def write(self, folder: Path) -> None:
        """Write `folder`/config.json."""
        write_settings_file(folder / "config.json", self.to_dict())


def read_config(path: str | Path) -> HarmonConfig:
    """The configuration of the model folder `path`. Raises ModelError for another family or an incomplete file."""
    file = Path(path) / "config.json"
    raw = read_config_file(file, "Give a Harmon folder; megaunigame family harmon assemble makes one.")
    kind = raw.pop("model_type", None)
    if kind != MODEL_TYPE:
        raise ModelError(f"{file} describes model_type {kind!r}; a Harmon folder has {MODEL_TYPE!r}.")
    raw = {name: value for name, value in raw.items() if name not in CODE}
    known = {f.name for f in dataclasses.fields(HarmonConfig)}
    if set(raw) != known:
        raise ModelError(f"{file} has the keys {', '.join(sorted(raw))}; it must have {', '.join(sorted(known))}.")
    drawing, legal = raw.pop("drawing"), {f.name for f in dataclasses.fields(Drawing)}
    if not isinstance(drawing, dict) or not set(drawing) <= legal:
        raise ModelError(f"{file}: drawing is {drawing!r}; it may have {', '.join(sorted(legal))}.")
    llm = config_from(Qwen2Config, raw.pop("llm"), file)
    try:
        return HarmonConfig(llm=llm, drawing=Drawing(**drawing), **raw)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error
    except TypeError as error:  # a text in place of a number
        raise ModelError(f"{file}: {error}. Copy config.json again.") from error
