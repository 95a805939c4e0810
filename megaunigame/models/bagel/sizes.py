"""The published size of BAGEL (arXiv 2505.14683), for pictures of 512 and of 1024 pixels, and the tiny one of the project's
own scenes: shapes in JSON."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from megaunigame.models.bagel.configuration import RELEASED
from megaunigame.models.bagel.folder import config_for, train_tokenizer, write_folder
from megaunigame.models.shapes import read_shape
from megaunigame.models.text.small_tokenizer import STAND_IN_TEXT, STAND_IN_VOCABULARY

TINY = Path(__file__).with_name("tiny.json")
"""64 x 64 pixels: 8 x 8 latent tokens, 8 x 8 visual tokens."""
TINY_VOCABULARY = 443


def write(file: Path, vocabulary: int, image_size: int, source_size: int, folder: Path) -> None:
    """Write a folder of the shape in `file` without weights; its tokenizer is a stand-in."""
    tokenizer = train_tokenizer(STAND_IN_TEXT, STAND_IN_VOCABULARY)
    config = config_for(tokenizer, read_shape(file, {"text_config": {"vocab_size": vocabulary}}))
    write_folder(folder, config, None, tokenizer, image_size=image_size, source_size=source_size)


SIZES: dict[str, Callable[[Path], None]] = {
    "tiny": partial(write, TINY, TINY_VOCABULARY, 64, 64),
    "7b_512": partial(write, RELEASED, 152064, 512, 518),
    "7b_1024": partial(write, RELEASED, 152064, 1024, 518),
}
