"""The published sizes of Chameleon (arXiv 2405.09818) and the tiny one of the project's own scenes: shapes in JSON.

Numbers of the released configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megaunigame.models.chameleon.folder import config_for, train_tokenizer, write_folder
from megaunigame.models.shapes import read_shape
from megaunigame.models.text.small_tokenizer import STAND_IN_TEXT, STAND_IN_VOCABULARY

TINY = Path(__file__).with_name("tiny.json")
"""64 x 64 pixels, 8 x 8 codes out of 256; the language model is as large as the tiny Janus's."""
TINY_VOCABULARY = 706


def write(file: Path, changes: Mapping[str, Any], folder: Path) -> None:
    """Write a folder of the shape in `file` without weights."""
    shape = read_shape(file, changes)
    tokenizer = train_tokenizer(STAND_IN_TEXT, STAND_IN_VOCABULARY, shape["vq_config"]["num_embeddings"])
    write_folder(folder, config_for(tokenizer, shape), None, tokenizer)


SIZES: dict[str, Callable[[Path], None]] = {
    "tiny": partial(write, TINY, {"vocab_size": TINY_VOCABULARY}),
    "7b": partial(write, TINY.with_name("7b.json"), {}),
    "30b": partial(write, TINY.with_name("30b.json"), {}),
}
"""Name -> writes a folder without weights. 7b has 7,082,385,283 parameters and 30b 34,363,027,331, the image tokenizer with
its decoder included."""
