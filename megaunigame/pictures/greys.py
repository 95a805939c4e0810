"""Greys of more than 8 bits to 8 bits, never clipped. One rule for every container:

- integers of 16 bits (or of 9 to 15, in a container that says so): the highest 8 of these bits;
- integers of 32 bits: stretched, so that the least value is 0 and the largest 255;
- floats: times 255 if all lie in [0, 1], else stretched. NaN and infinity are refused.

Of a stretched picture with one value only, every pixel is 0.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from megaunigame.pictures.rules import PictureError

WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")
"""Containers whose integers Pillow stretches to 16 bits, though their mode may be the one of 32."""
BITS_PER_SAMPLE, PHOTOMETRIC, MIN_IS_WHITE = 258, 262, 0
"""Tags of TIFF."""
AT_ONCE = 1 << 20
"""Values converted together, so that float64 copies stay small."""


def eight_bits(image: Image.Image) -> Image.Image:
    """A picture of a mode in `WIDE_MODES`, as opened and loaded, in mode L; LA if a value of it is transparent.

    Raises PictureError for NaN and infinity.
    """
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F" or (image.mode == "I" and image.format not in SIXTEEN_BITS):
        levels = _stretched(values)
    else:
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
        levels = (values >> max(0, bits - 8)).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == MIN_IS_WHITE:
        levels = 255 - levels
    grey = Image.fromarray(levels)
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _stretched(values: np.ndarray) -> np.ndarray:
    """uint8 (H, W) of int32 or float32 (H, W)."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():  # min and max of an array with NaN are NaN
        raise PictureError("values that are NaN or infinite")
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    levels = np.zeros(values.shape, np.uint8)
    if high > low:
        given, taken = values.reshape(-1), levels.reshape(-1)
        for start in range(0, given.size, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            taken[part] = np.rint((given[part].astype(np.float64) - low) * (255 / (high - low)))
    return levels
