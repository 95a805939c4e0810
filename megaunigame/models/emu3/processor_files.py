"""The files from which transformers' Emu3Processor and `generate` work: the same sequences as our processor's.

What transformers does differently: a picture that is not square keeps its shape, with about as many codes, where ours is
padded to a square with bars; and its processor always counts 8 pixels to a code, not as the vision tokenizer does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Emu3Config, PreTrainedTokenizerFast

from megaunigame.models.emu3.configuration import cell, read_config, read_sides
from megaunigame.models.emu3.conversation import (
    ASSISTANT,
    BEGIN_OF_CODES,
    BEGIN_OF_IMAGE,
    END_OF_IMAGE,
    FRAME_END,
    LINE_END,
    SYSTEM_PROMPT,
    USER,
    Emu3Format,
    code_token,
)
from megaunigame.models.text.processor import HALF
from megaunigame.models.text.processor_files import Turns, write_tokenizer
from megaunigame.models.weights.settings_files import (
    named_ids,
    read_generation_settings,
    read_system_prompt,
    read_tokenizer,
    write_settings_file,
)

PLACEHOLDER = "<image>"
"""Placeholder of a picture in transformers' processor; our rows need none."""
PROCESSOR = "Emu3Processor"
THEIR_CELL = 8
"""Pixels of a code along an edge, a constant in transformers' processor."""
DRAWING, PICTURES = "A picture of a text:", "What differs from the training:"
"""Beginnings of the sections of usage.md that follow the first, which is about questions with pictures."""
ONLY_TEXT = """\
**Questions with pictures do not work in transformers:** a code of this model's vision tokenizer stands for {cell} pixels along
an edge, and Emu3Processor counts {theirs}, so the model raises a ValueError. Ask them with megaunigame. Questions of text alone
work: `processor.apply_chat_template` as for any model.

"""


def write_processor(
    folder: Path,
    config: Emu3Config,
    tokenizer: PreTrainedTokenizerFast,
    *,
    image_size: int,
    source_size: int,
    system_prompt: str,
) -> None:
    """Write tokenizer, chat template, preprocessor_config.json and processor_config.json."""
    turns = Turns(
        opening=(system_prompt, " " + USER) if system_prompt else (USER,),  # their processor puts the first token before
        next_opening=USER,
        image=PLACEHOLDER,
        after_images=Emu3Format.after_images,
        closing=ASSISTANT,
        before_answer=Emu3Format.before_answer,
        end=tokenizer.eos_token,
    )
    named = {
        "image_token": PLACEHOLDER,
        "boi_token": BEGIN_OF_IMAGE,
        "eoi_token": END_OF_IMAGE,
        "image_wrapper_token": BEGIN_OF_CODES,
        "eof_token": FRAME_END,
    }
    write_tokenizer(folder, tokenizer, turns, named, PROCESSOR)
    pictures = {
        "image_processor_type": "Emu3ImageProcessor",
        "processor_class": PROCESSOR,
        "do_convert_rgb": True,
        "image_mean": list(HALF),
        "image_std": list(HALF),
        "spatial_factor": cell(config),
        # Their rule divides square roots and rounds down or up: with the exact area, some squares would lose or gain a code.
        "min_pixels": source_size**2 - source_size,
        "max_pixels": source_size**2 + source_size,
    }
    write_settings_file(folder / "preprocessor_config.json", pictures)
    processor = {
        "processor_class": PROCESSOR,
        "image_size": image_size,
        "source_size": source_size,
        "system_prompt": system_prompt,
    }
    write_settings_file(folder / "processor_config.json", processor)


def write_model_settings(
    folder: Path, config: Emu3Config, tokenizer: PreTrainedTokenizerFast, generation: Mapping[str, Any]
) -> None:
    """Write config.json, with the part of the vocabulary that transformers' model reads from it, and generation_config.json.

    `generation`: settings of the latter that stay as they are.
    """
    vocabulary = tokenizer.get_vocab()
    names = [*(code_token(code) for code in range(config.vq_config.codebook_size)), LINE_END, PLACEHOLDER]
    config.vocabulary_map = {name: vocabulary[name] for name in names if name in vocabulary}
    config.architectures = ["Emu3ForConditionalGeneration"]
    config.save_pretrained(folder)
    write_settings_file(folder / "generation_config.json", {**generation, **named_ids(tokenizer)})


def page_for(config: Emu3Config, page: str) -> str:
    """What is true of usage.md: only drawing, its area in their cells, where a code has other pixels than theirs."""
    ours = cell(config)
    if ours == THEIR_CELL:
        return page
    drawing = page[page.index(DRAWING) : page.index(PICTURES)]
    factor = f" * {THEIR_CELL} // {ours}"
    area = f"(SIDE{factor}) * (SIDE{factor})"
    return ONLY_TEXT.format(cell=ours, theirs=THEIR_CELL) + drawing.replace("SIDE * SIDE", area)


def export_processor(path: str, out: Path) -> None:
    """Write the processor of the folder `path`, of either layout, into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    config = read_config(path)
    image_size, source_size = read_sides(path, config)
    write_processor(
        out,
        config,
        read_tokenizer(Path(path)),
        image_size=image_size,
        source_size=source_size,
        system_prompt=read_system_prompt(Path(path), SYSTEM_PROMPT),
    )


def export_settings(path: str, out: Path) -> None:
    """Write all settings of the folder `path`, of either layout, as those of a Hugging Face folder `out`."""
    export_processor(path, out)
    write_model_settings(out, read_config(path), read_tokenizer(Path(path)), read_generation_settings(Path(path)))
