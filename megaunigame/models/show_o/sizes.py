"""The published sizes of Show-o (arXiv 2408.12528) and the tiny one of the project's own scenes: shapes in JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megaunigame.models.shapes import read_shape
from megaunigame.models.show_o.configuration import RELEASED
from megaunigame.models.show_o.conversation import END, add_special_tokens
from megaunigame.models.show_o.folder import config_for, write_folder
from megaunigame.models.text.small_tokenizer import STAND_IN_TEXT, STAND_IN_VOCABULARY, small_tokenizer

TINY = Path(__file__).with_name("tiny.json")
"""64 x 64 pixels, 8 x 8 codes out of 256; the language model is as wide and as deep as the tiny Janus's."""
TINY_TEXT, RELEASED_TEXT = 443, 50295
"""Tokens of the text."""


def write(file: Path, changes: Mapping[str, Any], text: int, folder: Path) -> None:
    """Write a folder of the shape in `file` without weights, for a tokenizer of `text` tokens."""
    tokenizer = small_tokenizer(STAND_IN_TEXT, STAND_IN_VOCABULARY, [END], pad=END, bos=END, eos=END)
    # Codes are counted from the length of the tokenizer, so the stand-in has as many tokens as the real one.
    fill = [f"<|text {number}|>" for number in range(text - len(tokenizer))]
    tokenizer.add_tokens(fill, special_tokens=True)
    add_special_tokens(tokenizer, text, str(folder))
    write_folder(folder, config_for(tokenizer, read_shape(file, changes)), None, tokenizer)


SIZES: dict[str, Callable[[Path], None]] = {
    "tiny": partial(write, TINY, {}, TINY_TEXT),
    "1.3b_256": partial(write, RELEASED, {}, RELEASED_TEXT),
    "1.3b_512": partial(write, RELEASED, {"num_vq_tokens": 1024}, RELEASED_TEXT),
}
