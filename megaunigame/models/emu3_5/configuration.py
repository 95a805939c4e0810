"""The two configurations of an Emu3.5 folder: config.json of the language model, vision_tokenizer/config.json of the tokenizer.

The release calls its language model "Emu3", as Emu3-8B does. A folder converted for transformers has Qwen3's configuration.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from transformers import Qwen3Config

from megaunigame.errors import ModelError
from megaunigame.models.text import picture_sides
from megaunigame.models.weights.settings_files import config_from, read_config_file, read_whole, write_settings_file

MODEL_TYPE, CONVERTED_TYPE, TOKENIZER_TYPE = "Emu3", "qwen3", "Emu3p5VisionVQ"
TOKENIZER_FOLDER = "vision_tokenizer"
"""Where a folder holds the vision tokenizer, which is published in a separate repository."""
TOKENIZER_HINT = (
    "The vision tokenizer is published alone: copy model.safetensors of BAAI/Emu3.5-VisionTokenizer to "
    "FOLDER/model.safetensors."
)
"""What is missing where the folder FOLDER has no weights."""
EMU3_VOCABULARY, EMU3_TOKENIZER_TYPE = 184_622, "Emu3VisionVQ"
"""What tells the release of Emu3-8B, whose model_type is the same."""
IMAGE_AREA = 720 * 720
"""Default pixels of a picture: those of Emu3.5. Emu3.5-Image draws 1024 x 1024."""

OFFICIAL_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
OFFICIAL_DEFAULTS: dict[str, Any] = {
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "attention_dropout": 0.1,
    "initializer_range": 0.02,
    "pad_token_id": 151643,
    "bos_token_id": 151849,
    "eos_token_id": 151850,
}
"""Values of the official configuration class, which hold where its config.json says nothing."""
OFFICIAL_TOKENIZER = {
    "codebook_size": "codebook_size",
    "embed_dim": "embed_dim",
    "z_channels": "latent_channels",
    "in_channels": "in_channels",
    "out_ch": "out_channels",
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
    "resolution": "resolution",
}
"""Official name -> ours."""


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the IBQ vision tokenizer."""

    codebook_size: int
    embed_dim: int
    """C: width of a row of the codebook."""
    latent_channels: int
    """Channels between encoder and quantizer, and between quantizer and decoder."""
    base_channels: int
    channel_multiplier: tuple[int, ...]
    """Width of each level, in units of `base_channels`; each level after the first halves the resolution."""
    num_res_blocks: int
    """Residual blocks of a level of the encoder; the decoder has one more."""
    attn_resolutions: tuple[int, ...]
    """Levels with attention, by their pixels along an edge of a picture of `resolution` pixels."""
    resolution: int
    in_channels: int = 3
    out_channels: int = 3

    @classmethod
    def of(cls, sizes: dict[str, Any]) -> VisionConfig:
        """From JSON, where sequences are lists."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in sizes.items()}
        return cls(**values)


@dataclass
class Emu3p5Config:
    """Both configurations. Raises ModelError for a language model that the family does not have."""

    text_config: Qwen3Config
    vq_config: VisionConfig
    image_area: int = IMAGE_AREA
    """Pixels of a picture where processor_config.json gives no side."""

    def __post_init__(self) -> None:
        for name in ("tie_word_embeddings", "attention_bias"):
            if getattr(self.text_config, name):
                raise ModelError(f"{name} is true in the configuration of the language model; in Emu3.5 it is false.")

    def get_text_config(self) -> Qwen3Config:
        """The configuration of the language model, as in transformers' configurations."""
        return self.text_config

    @property
    def cell(self) -> int:
        """Pixels of one code along an edge."""
        return 2 ** (len(self.vq_config.channel_multiplier) - 1)

    def to_dict(self) -> dict[str, Any]:
        vision = dataclasses.asdict(self.vq_config)
        return {"text_config": self.text_config.to_dict(), "vq_config": vision, "image_area": self.image_area}

    def write(self, folder: Path) -> None:
        """Write both files in the official layout."""
        text, vision = self.text_config, dataclasses.asdict(self.vq_config)
        names = {*OFFICIAL_SIZES, *OFFICIAL_DEFAULTS} - {"rope_theta"}
        language: dict[str, Any] = {"architectures": ["Emu3ForCausalLM"], "model_type": MODEL_TYPE}
        language |= {name: getattr(text, name) for name in sorted(names)}
        language |= {"rope_theta": text.rope_parameters["rope_theta"], "rope_scaling": None, "image_area": self.image_area}
        write_settings_file(folder / "config.json", {**language, "tie_word_embeddings": False})
        (folder / TOKENIZER_FOLDER).mkdir(exist_ok=True)
        sizes = {theirs: vision[ours] for theirs, ours in OFFICIAL_TOKENIZER.items()}
        tokenizer = {"model_type": TOKENIZER_TYPE, **sizes, "double_z": False, "dropout": 0.0}
        write_settings_file(folder / TOKENIZER_FOLDER / "config.json", tokenizer)


def read_config(path: str | Path) -> Emu3p5Config:
    """The configuration of the model folder `path`. Raises ModelError for another family or an incomplete configuration."""
    file = Path(path) / "config.json"
    raw = read_config_file(file, "Give an Emu3.5 folder: config.json and weights of BAAI/Emu3.5 or BAAI/Emu3.5-Image.")
    kind = raw.get("model_type")
    if kind == "emu3" or (kind == MODEL_TYPE and raw.get("vocab_size") == EMU3_VOCABULARY):
        raise ModelError(f"{file} describes Emu3, not Emu3.5; type model.family=emu3.")
    if kind not in (MODEL_TYPE, CONVERTED_TYPE):
        raise ModelError(f"{file} describes model_type {kind!r}; an Emu3.5 folder has {MODEL_TYPE!r} or {CONVERTED_TYPE!r}.")
    text = _official_text(raw, file) if kind == MODEL_TYPE else config_from(Qwen3Config, raw, file)
    return Emu3p5Config(text, _vision(path), read_whole(raw, "image_area", IMAGE_AREA, file))


def _official_text(raw: dict[str, Any], file: Path) -> Qwen3Config:
    """The released configuration as Qwen3's; every value that they default differently is given."""
    if raw.get("rope_scaling"):
        raise ModelError(f"{file} has rope_scaling {raw['rope_scaling']}; no release of Emu3.5 has it.")
    absent = [name for name in OFFICIAL_SIZES if name not in raw]
    if absent:
        raise ModelError(f"{file} has no {absent[0]!r} where an official Emu3.5 configuration has one.")
    values = {name: raw.get(name, default) for name, default in OFFICIAL_DEFAULTS.items()}
    rope = {"rope_type": "default", "rope_theta": values.pop("rope_theta")}
    flags = {name: raw.get(name, False) for name in ("tie_word_embeddings", "attention_bias")}
    sizes = {name: raw[name] for name in OFFICIAL_SIZES}
    return config_from(Qwen3Config, {**sizes, **values, **flags, "rope_parameters": rope}, file)


def _vision(path: str | Path) -> VisionConfig:
    """Of the folder's vision tokenizer."""
    file = Path(path) / TOKENIZER_FOLDER / "config.json"
    raw = read_config_file(file, f"Put config.json and model.safetensors of BAAI/Emu3.5-VisionTokenizer into {file.parent}.")
    kind = raw.get("model_type")
    if kind == EMU3_TOKENIZER_TYPE:
        raise ModelError(
            f"{file} describes the vision tokenizer of Emu3. If {path} is a release of Emu3, type model.family=emu3; "
            f"else put BAAI/Emu3.5-VisionTokenizer into {file.parent}."
        )
    if kind != TOKENIZER_TYPE:
        raise ModelError(f"{file} describes model_type {kind!r}; the vision tokenizer of Emu3.5 has {TOKENIZER_TYPE!r}.")
    try:
        sizes = {ours: raw[theirs] for theirs, ours in OFFICIAL_TOKENIZER.items()}
    except KeyError as error:
        raise ModelError(f"{file} has no {error} where an official vision tokenizer has one.") from error
    if raw.get("double_z"):
        raise ModelError(f"{file} has double_z true; the vision tokenizer of Emu3.5 has false.")
    return VisionConfig.of(sizes)


def read_sides(path: str | Path, config: Emu3p5Config) -> tuple[int, int]:
    """Sides of generated and of understood pictures, in pixels.

    `image_size` and `source_size` of processor_config.json; else the square of the configuration's image area, for both.
    Raises ModelError for a side that is not a multiple of a code's.
    """
    return picture_sides.read_sides(path, config.cell, isqrt(config.image_area) // config.cell * config.cell)
