"""The published size of Emu3.5 (arXiv 2510.26583), which Emu3.5-Image shares, and the tiny one of the project's own scenes.

Numbers of the official code, counted against the published sizes; the released config.json was not at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megaunigame.models.emu3_5.conversation import SYSTEM_PROMPT
from megaunigame.models.emu3_5.folder import config_for, train_tokenizer, write_folder
from megaunigame.models.shapes import read_shape
from megaunigame.models.text.small_tokenizer import STAND_IN_TEXT, STAND_IN_VOCABULARY

TINY = Path(__file__).with_name("tiny.json")
"""64 x 64 pixels, 8 x 8 codes out of 256; the language model is about as large as the tiny Janus's."""
TINY_VOCABULARY = 707


def write(file: Path, changes: Mapping[str, Any], image_size: int, system_prompt: str, folder: Path) -> None:
    """Write a folder of the shape in `file` without weights."""
    shape = read_shape(file, changes)
    tokenizer = train_tokenizer(STAND_IN_TEXT, STAND_IN_VOCABULARY, shape["vq_config"]["codebook_size"])
    write_folder(folder, config_for(tokenizer, shape), None, tokenizer, image_size=image_size, system_prompt=system_prompt)


SIZES: dict[str, Callable[[Path], None]] = {
    "tiny": partial(write, TINY, {"text_config": {"vocab_size": TINY_VOCABULARY}}, 64, ""),
    "34b": partial(write, TINY.with_name("34b.json"), {}, 720, SYSTEM_PROMPT),
}
"""Name -> writes a folder without weights. 34b has 34,103,460,864 parameters and 455,336,963 of the vision tokenizer; its
pictures have 720 x 720 pixels, as those of Emu3.5. Emu3.5-Image draws 1024 x 1024: `image_size` in processor_config.json."""
