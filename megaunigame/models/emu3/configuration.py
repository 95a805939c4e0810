"""config.json of an Emu3 folder -> transformers' Emu3Config, from Hugging Face folders and from the official ones."""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import Any

from transformers import Emu3Config

from megaunigame.errors import ModelError
from megaunigame.models.text import picture_sides
from megaunigame.models.weights.settings_files import config_from, read_config_file, read_settings, read_whole
from megaunigame.models.weights.tensor_files import TensorFiles

TOKENIZER_FOLDER = "vision_tokenizer"
"""Where an official folder holds the vision tokenizer, which is published in a separate repository."""
SEPARATE = "The official vision tokenizer is a separate repository, BAAI/Emu3-VisionTokenizer"
IMAGE_AREA = 720 * 720
"""Default pixels of a picture."""
EMU3_5_VOCABULARY, EMU3_5_TOKENIZER_TYPE = 282_926, "Emu3p5VisionVQ"
"""What tells the release of Emu3.5."""

OFFICIAL_LANGUAGE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("hidden_act", "max_position_embeddings", "rms_norm_eps", "attention_dropout", "initializer_range"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
OFFICIAL_TOKENIZER = {
    "codebook_size": "codebook_size",
    "embed_dim": "embed_dim",
    "z_channels": "latent_channels",
    "double_z": "double_latent",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "temporal_downsample_factor": "temporal_downsample_factor",
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
}
"""Official name -> transformers' name. `attn_resolutions` are numbers of levels in both."""


def read_config(path: str | Path) -> Emu3Config:
    """The configuration of the model folder `path`; its `image_area` is always set.

    Raises ModelError for another family or an incomplete configuration.
    """
    file = Path(path) / "config.json"
    raw = read_config_file(file, "Give an Emu3 folder: Hugging Face layout or the official release.")
    kind = raw.get("model_type")
    if kind == "Emu3":
        refuse_emu3_5(raw, file)
        vision = Path(path) / TOKENIZER_FOLDER / "config.json"
        hint = f"{SEPARATE}: put its config.json and model.safetensors into {vision.parent}."
        config = from_official(raw, file, read_config_file(vision, hint), vision)
    elif kind == "emu3":
        config = config_from(Emu3Config, raw, file)
    else:
        raise ModelError(f"{file} describes model_type {kind!r}; an Emu3 folder has 'emu3' or 'Emu3'.")
    config.image_area = read_whole(raw, "image_area", IMAGE_AREA, file)
    return config


def refuse_emu3_5(language: dict[str, Any], file: Path) -> None:
    """Raises ModelError for the next model of the series: its model_type is the same, its layers and sequences are not."""
    vision = read_settings(file.parent / TOKENIZER_FOLDER / "config.json")
    if language.get("vocab_size") == EMU3_5_VOCABULARY or vision.get("model_type") == EMU3_5_TOKENIZER_TYPE:
        raise ModelError(f"{file.parent} holds Emu3.5, not Emu3; type model.family=emu3_5.")


def from_official(language: dict[str, Any], file: Path, vision: dict[str, Any], vision_file: Path) -> Emu3Config:
    """From the two released configurations; the files are named in errors."""
    if language.get("rope_scaling"):
        raise ModelError(f"{file} has rope_scaling {language['rope_scaling']}; no release of Emu3 has it.")
    try:
        text = {key: language[key] for key in OFFICIAL_LANGUAGE}
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": language["rope_theta"]}
    except KeyError as error:
        raise ModelError(f"{file} has no {error} where an official Emu3 configuration has one.") from error
    try:
        codes = {ours: vision[theirs] for theirs, ours in OFFICIAL_TOKENIZER.items()}
    except KeyError as error:
        raise ModelError(f"{vision_file} has no {error} where an official vision tokenizer has one.") from error
    widths = {codes["base_channels"] * codes["channel_multiplier"][level] for level in (*codes["attn_resolutions"], -1)}
    if len(widths) > 1:
        raise ModelError(f"{vision_file} attends at widths {sorted(widths)}; released vision tokenizers do at one.")
    return Emu3Config(text_config=text, vq_config={**codes, "hidden_size": widths.pop()}, tie_word_embeddings=False)


def cell(config: Emu3Config) -> int:
    """Pixels of one code along an edge."""
    return 2 ** (len(config.vq_config.channel_multiplier) - 1)


def read_sides(path: str | Path, config: Emu3Config) -> tuple[int, int]:
    """Sides of generated and of understood pictures, in pixels.

    `image_size` and `source_size` of processor_config.json; else the square of the configuration's image area, for both.
    Raises ModelError for a side that is not a multiple of a code's.
    """
    return picture_sides.read_sides(path, cell(config), isqrt(config.image_area) // cell(config) * cell(config))


def tensor_files(path: str | Path) -> TensorFiles:
    """All weight files of the folder, with those of a separate vision tokenizer folder."""
    files = TensorFiles.of_folder(path).files
    tokenizer = Path(path) / TOKENIZER_FOLDER
    if not tokenizer.is_dir():
        return TensorFiles(files)
    hint = f"{SEPARATE}: copy its model.safetensors to {tokenizer / 'model.safetensors'}."
    return TensorFiles([*files, *TensorFiles.of_folder(tokenizer, hint).files])
