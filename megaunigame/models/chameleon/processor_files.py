"""The files from which transformers' ChameleonProcessor works: the same sequences as our processor's.

What transformers does differently: of a picture that is not square it takes the square in the middle, where ours is padded with
bars; and its processor puts the separator after every prompt by itself, so also after a conversation that ends with an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import ChameleonConfig, PreTrainedTokenizerFast

from megaunigame.models.chameleon.configuration import cell, read_config, read_sides, read_text_tokenizer
from megaunigame.models.chameleon.conversation import BEGIN_OF_IMAGE, END_OF_IMAGE, SEPARATOR, ChameleonFormat, after_system
from megaunigame.models.chameleon.text_tokenizer import BOS, EOS, PLACEHOLDER
from megaunigame.models.text.processor_files import Turns, write_tokenizer
from megaunigame.models.weights.settings_files import (
    named_ids,
    read_generation_settings,
    read_settings,
    read_system_prompt,
    write_settings_file,
)

PROCESSOR = "ChameleonProcessor"
BICUBIC = 3
"""Pillow's number of the resizing kernel; the default of their class is Lanczos."""


def write_processor(
    folder: Path,
    config: ChameleonConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    image_size: int,
    source_size: int,
    system_prompt: str,
) -> None:
    """Write tokenizer, chat template, preprocessor_config.json and processor_config.json."""
    turns = Turns(
        opening=(BOS, after_system(system_prompt)) if system_prompt else (BOS,),
        next_opening="",
        image=PLACEHOLDER,
        after_images=ChameleonFormat.after_images,
        closing=SEPARATOR,
        before_answer=ChameleonFormat.before_answer,
        end=EOS,
        last_closing="",
    )
    named = {"image_token": PLACEHOLDER, "boi_token": BEGIN_OF_IMAGE, "eoi_token": END_OF_IMAGE}
    write_tokenizer(folder, tokenizer, turns, named, PROCESSOR)
    settings = read_settings(folder / "tokenizer_config.json")
    write_settings_file(folder / "tokenizer_config.json", {**settings, "sep_token": SEPARATOR})
    pictures = {
        "image_processor_type": "ChameleonImageProcessor",
        "processor_class": PROCESSOR,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": source_size},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": source_size, "width": source_size},
        "do_rescale": True,
        "rescale_factor": 1 / 127.5,  # to [-1, 1], as in training; their default ends at 0.99
        "do_normalize": True,
        "image_mean": [1.0, 1.0, 1.0],
        "image_std": [1.0, 1.0, 1.0],
    }
    write_settings_file(folder / "preprocessor_config.json", pictures)
    processor = {
        "processor_class": PROCESSOR,
        "image_token": PLACEHOLDER,
        "image_seq_length": (source_size // cell(config)) ** 2,
        "image_size": image_size,
        "source_size": source_size,
        "system_prompt": system_prompt,
    }
    write_settings_file(folder / "processor_config.json", processor)


def write_model_settings(folder: Path, config: ChameleonConfig, generation: Mapping[str, Any]) -> None:
    """Write config.json and generation_config.json; `generation`: settings of the latter that stay as they are."""
    config.architectures = ["ChameleonForConditionalGeneration"]
    config.save_pretrained(folder)
    write_settings_file(folder / "generation_config.json", {**generation, **named_ids(config)})


def export_processor(path: str, out: Path) -> None:
    """Write the processor of the folder `path`, of either layout, into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    config = read_config(path)
    image_size, source_size = read_sides(path, config)
    write_processor(
        out,
        config,
        read_text_tokenizer(path),
        image_size=image_size,
        source_size=source_size,
        system_prompt=read_system_prompt(Path(path)),
    )


def export_settings(path: str, out: Path) -> None:
    """Write all settings of the folder `path`, of either layout, as those of a Hugging Face folder `out`."""
    export_processor(path, out)
    write_model_settings(out, read_config(path), read_generation_settings(Path(path)))
