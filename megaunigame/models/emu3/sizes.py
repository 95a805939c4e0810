"""The published size of Emu3 (arXiv 2409.18869) and the tiny one of the project's own scenes: shapes in JSON.

Numbers of the released config.json of the language model and of the vision tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megaunigame.models.emu3.conversation import SYSTEM_PROMPT
from megaunigame.models.emu3.folder import config_for, train_tokenizer, write_folder
from megaunigame.models.shapes import read_shape
from megaunigame.models.text.small_tokenizer import STAND_IN_TEXT, STAND_IN_VOCABULARY

TINY = Path(__file__).with_name("tiny.json")
"""64 x 64 pixels, 8 x 8 codes out of 256, one frame in time; the language model is as large as the tiny Janus's."""
TINY_VOCABULARY = 707


def write(file: Path, changes: Mapping[str, Any], image_size: int, system_prompt: str, folder: Path) -> None:
    """Write a folder of the shape in `file` without weights."""
    shape = read_shape(file, changes)
    tokenizer = train_tokenizer(STAND_IN_TEXT, STAND_IN_VOCABULARY, shape["vq_config"]["codebook_size"])
    write_folder(folder, config_for(tokenizer, shape), None, tokenizer, image_size=image_size, system_prompt=system_prompt)


SIZES: dict[str, Callable[[Path], None]] = {
    "tiny": partial(write, TINY, {"text_config": {"vocab_size": TINY_VOCABULARY}}, 64, ""),
    "8b": partial(write, TINY.with_name("8b.json"), {}, 720, SYSTEM_PROMPT),
}
"""Name -> writes a folder without weights. 8b has 8,762,751,807 parameters, the vision tokenizer included."""
