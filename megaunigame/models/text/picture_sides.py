"""Sides of pictures in the settings of a model folder, for families whose pictures are squares of codes."""

from __future__ import annotations

from pathlib import Path

from megaunigame.errors import ModelError
from megaunigame.models.weights.settings_files import is_whole, read_settings

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
        if not is_whole(given) or given < 2 * cell or given % cell:
            raise ModelError(
                f"{name}={given!r} (in {file}) must be a multiple of {cell}, the pixels of one code, and {2 * cell} or more."
            )
    return image, source
