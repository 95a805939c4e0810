"""Sides of pictures in the settings of a model folder, for families whose pictures are squares of codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ModelError
from megaunigame.models.weights.settings_files import read_settings

SETTINGS = "processor_config.json"


def read_sides(path: str | Path, cell: int, side: int) -> tuple[int, int]:
    """Sides of generated and of understood pictures, in pixels: `image_size` and `source_size` of processor_config.json.

    `cell`: pixels of a code along an edge. `side`: what `image_size` is without that file; `source_size` is then the same.
    Raises ModelError for a side that is not a multiple of a code's, and for one of a single code: a norm of a narrow tokenizer
    is then over one value, and nothing is left of the picture.
    """
    file = Path(path) / SETTINGS
    settings = read_settings(file)
    image = settings.get("image_size", side)
    source = settings.get("source_size", image)
    for name, given in (("image_size", image), ("source_size", source)):
        if not _whole(given) or given < 2 * cell or given % cell:
            raise ModelError(
                f"{name}={given!r} (in {file}) must be a multiple of {cell}, the pixels of one code, and {2 * cell} or more."
            )
    return image, source


def check_size(tokenizer: PreTrainedTokenizerFast, vocabulary: int, folder: Path) -> None:
    """Raises ModelError for a tokenizer with tokens that the embedding of `vocabulary` rows does not have."""
    last = max(tokenizer.get_vocab().values())
    if last >= vocabulary:
        raise ModelError(
            f"The tokenizer in {folder} has tokens up to {last}, and vocab_size in config.json is {vocabulary}. Take tokenizer "
            "and config.json of one model."
        )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
