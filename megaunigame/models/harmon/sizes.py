"""The published sizes of Harmon (arXiv 2503.21979) and the tiny one of the project's own scenes: shapes in JSON.

0.5b   Qwen2.5-0.5B, MAR-B with a diffusion head of 6 layers
1.5b   Qwen2.5-1.5B, MAR-H with a diffusion head of 12 layers
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from megaunigame.models.harmon.folder import config_for, train_tokenizer, write_folder
from megaunigame.models.shapes import read_shape
from megaunigame.models.text.small_tokenizer import STAND_IN_TEXT, STAND_IN_VOCABULARY

HERE = Path(__file__).parent
TINY = HERE / "tiny.json"
"""64 x 64 pixels, 8 x 8 tokens of 8 channels, 8 buffers."""
TINY_VOCABULARY = 444
FILES = {"0.5b": HERE / "0_5b.json", "1.5b": HERE / "1_5b.json"}


def write(file: Path, vocabulary: int | None, folder: Path) -> None:
    """Write a folder of the shape in `file` without weights; its tokenizer is a stand-in. `vocabulary` None: as in the file."""
    tokenizer = train_tokenizer(STAND_IN_TEXT, STAND_IN_VOCABULARY)
    changes = {} if vocabulary is None else {"llm": {"vocab_size": vocabulary}}
    write_folder(folder, config_for(tokenizer, read_shape(file, changes)), None, tokenizer)


SIZES: dict[str, Callable[[Path], None]] = {
    "tiny": partial(write, TINY, TINY_VOCABULARY),
    **{size: partial(write, file, None) for size, file in FILES.items()},
}
