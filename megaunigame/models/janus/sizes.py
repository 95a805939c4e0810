"""Published sizes of Janus-Pro (arXiv 2501.17811) and the tiny one that ships with the project: shapes in JSON.

Numbers of the released config.json files; sizes they do not give are in `configuration.TOWERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megaunigame.models.janus.folder import config_for, train_tokenizer, write_folder
from megaunigame.models.shapes import read_shape
from megaunigame.models.text.small_tokenizer import STAND_IN_TEXT, STAND_IN_VOCABULARY

TINY = Path(__file__).with_name("tiny.json")
"""The shape of the weights in megaunigame/tiny_world: 64 x 64 pixels, 64 visual tokens, 64 codes out of 256."""
TINY_VOCABULARY = 512


def write(shape: Path, changes: Mapping[str, Any], folder: Path) -> None:
    """Write a folder of this shape without weights."""
    tokenizer = train_tokenizer(STAND_IN_TEXT, STAND_IN_VOCABULARY)
    write_folder(folder, config_for(tokenizer, read_shape(shape, changes)), None, tokenizer)


SIZES: dict[str, Callable[[Path], None]] = {
    "tiny": partial(write, TINY, {"text_config": {"vocab_size": TINY_VOCABULARY}}),
    **{size: partial(write, TINY.with_name(f"{size}.json"), {}) for size in ("1b", "7b")},
}
"""Name -> writes a folder without weights; 1b has 2,076,636,811 parameters and 7b 7,407,773,323, image tokenizer included."""
