"""Depth and contours that a data set has as picture files, as fields of our shards."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from megaunigame.data.decode import CONTOURS_FIELD
from megaunigame.pictures.pillow import opened
from megaunigame.pictures.rules import PictureError, PictureRules

from ..target_fields import depth_target
from .sample import EntryFailure

GRAYS = ("L", "I", "I;16", "I;16B")
COLORS = ("RGB", "RGBA")
"""Modes of Pillow in which tools write gray, the same number in each channel."""


def depth_field(content: bytes, size: tuple[int, int], rules: PictureRules) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The file of a depth map, near = bright, as `depth_target` of this (height, width) stores it: stretched to 16 bits.

    Raises EntryFailure for a file that is not a gray picture.
    """
    return depth_target(_levels(content, (*GRAYS, *COLORS), rules).astype(np.float32), size)


def contours_field(content: bytes, rules: PictureRules) -> dict[str, bytes]:
    """The file of drawn contours, light on black, as an 8-bit gray PNG of the same pixels.

    Not resized: lines of one pixel would fade. Raises EntryFailure for a file that is not an 8-bit gray picture.
    """
    levels = _levels(content, ("1", "L", *COLORS), rules)
    out = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8) * np.uint8(255 if levels.dtype == bool else 1)).save(out, "png", compress_level=1)
    return {CONTOURS_FIELD: out.getvalue()}


def size_of(content: bytes, rules: PictureRules) -> tuple[int, int]:
    """(height, width) as the header of a picture file says. Raises EntryFailure when it has none."""
    try:
        with opened(content, rules) as picture:
            return picture.height, picture.width
    except PictureError as error:
        raise EntryFailure(str(error)) from error


def _levels(content: bytes, modes: tuple[str, ...], rules: PictureRules) -> np.ndarray:
    """(H, W): the numbers of a gray picture in one of the `modes` of Pillow."""
    try:
        with opened(content, rules) as picture:
            mode, levels = picture.mode, np.array(picture)
    except PictureError as error:
        raise EntryFailure(str(error)) from error
    if mode not in modes:
        raise EntryFailure(f"a picture of mode {mode}; legal: {', '.join(modes)}")
    if mode in COLORS:
        red, green, blue = (levels[:, :, channel] for channel in range(3))
        if (red != green).any() or (red != blue).any():
            raise EntryFailure("a picture in colors; it must be gray")
        return red
    return levels
