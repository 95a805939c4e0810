"""The files from which transformers' JanusProcessor and `generate` work: the same sequences and pictures as our processor's.

What JanusImageProcessor does differently: the shorter edge of a picture that is not square is rounded to the nearest pixel
instead of down, and the bars have the color of `image_mean` instead of `BACKGROUND`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import JanusConfig, PreTrainedTokenizerFast

from megaunigame.models.janus.configuration import read_config, visual_tokens
from megaunigame.models.janus.conversation import ASSISTANT, BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE, USER, JanusFormat
from megaunigame.models.text.processor import HALF
from megaunigame.models.text.processor_files import Turns, write_tokenizer
from megaunigame.models.weights.settings_files import (
    read_generation_settings,
    read_settings,
    read_system_prompt,
    read_tokenizer,
    write_settings_file,
)

PROCESSOR = "JanusProcessor"
BICUBIC = 3
"""Pillow's number."""
GUIDANCE = 5.0
"""Of the release, for pictures."""


def write_processor(
    folder: Path,
    config: JanusConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    system_prompt: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Write tokenizer, chat template, preprocessor_config.json and processor_config.json."""
    conversation = JanusFormat(tokenizer, visual_tokens(config), system_prompt, str(folder))
    turns = Turns(
        opening=(tokenizer.bos_token, *([system_prompt + "\n\n"] if system_prompt else []), USER),
        next_opening=USER,
        image=IMAGE,
        after_images=conversation.after_images,
        closing=ASSISTANT,
        before_answer=conversation.before_answer,
        end=tokenizer.eos_token,
    )
    named = {"image_token": IMAGE, "boi_token": BEGIN_OF_IMAGE, "eoi_token": END_OF_IMAGE}
    write_tokenizer(folder, tokenizer, turns, named, PROCESSOR)
    side = config.vision_config.image_size
    pictures = {
        "image_processor_type": "JanusImageProcessor",
        "processor_class": PROCESSOR,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "min_size": 1,
        "resample": BICUBIC,
        "do_pad": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    write_settings_file(folder / "preprocessor_config.json", pictures)
    processor = {
        "processor_class": PROCESSOR,
        "num_image_tokens": visual_tokens(config),
        "use_default_system_prompt": False,
        "system_prompt": system_prompt,
    }
    write_settings_file(folder / "processor_config.json", processor)


def write_model_settings(
    folder: Path, config: JanusConfig, tokenizer: PreTrainedTokenizerFast, generation: Mapping[str, Any]
) -> None:
    """Write config.json and generation_config.json; `generation`: settings of the latter that stay as they are."""
    config.architectures = ["JanusForConditionalGeneration"]
    config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
    config.vision_config.num_image_tokens = visual_tokens(config)
    config.save_pretrained(folder)
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        "generation_kwargs": {"boi_token_id": tokenizer.convert_tokens_to_ids(BEGIN_OF_IMAGE)},
    }
    write_settings_file(folder / "generation_config.json", {"guidance_scale": GUIDANCE, **generation, **tokens})


def export_processor(path: str, out: Path) -> None:
    """Write the processor of the folder `path`, of either layout, into `out`."""
    folder = Path(path)
    out.mkdir(parents=True, exist_ok=True)
    pictures = read_settings(folder / "preprocessor_config.json")
    write_processor(
        out,
        read_config(folder),
        read_tokenizer(folder),
        system_prompt=read_system_prompt(folder),
        mean=pictures.get("image_mean", HALF),
        std=pictures.get("image_std", HALF),
    )


def export_settings(path: str, out: Path) -> None:
    """Write all settings of the folder `path`, of either layout, as those of a Hugging Face folder `out`."""
    export_processor(path, out)
    write_model_settings(out, read_config(path), read_tokenizer(Path(path)), read_generation_settings(Path(path)))
