"""What teachers predict, as the fields of a shard: depth.png, seg.png, codes.bin and numbers in the json."""

from __future__ import annotations

import colorsys
import io
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from megaunigame.data.codes import write_codes
from megaunigame.data.decode import CODES_FIELD, DEPTH_FIELD, SEGMENTATION_FIELD
from megaunigame.step.codes import PictureCodes

SIMILARITY = "clip_similarity"

Target = tuple[dict[str, bytes], dict[str, Any]]
"""Fields to add to a sample, and numbers to add to its json."""


def target_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(height, width) with the shorter side at most `shorter`, aspect kept; 0: unchanged. Nothing is enlarged."""
    if shorter == 0 or min(height, width) <= shorter:
        return height, width
    scale = shorter / min(height, width)
    return max(shorter, round(height * scale)), max(shorter, round(width * scale))


def is_same_shape(target: Sequence[int], picture: Sequence[int]) -> bool:
    """Whether two (height, width) have one ratio, up to a rounding of the target's sides to whole pixels."""
    (rows, columns), (height, width) = target, picture
    return abs(columns * height - rows * width) <= height + width


def depth_target(depth: np.ndarray, size: tuple[int, int]) -> Target:
    """float32 (h, w), near = large -> a 16-bit PNG of `size` and the json's numbers about it.

    A stored v means depth_min + v / 65535 * (depth_max - depth_min) in the teacher's unit. A constant map is stored as
    zeros. Raises ValueError for NaN and infinity.
    """
    if not np.isfinite(depth).all():
        raise ValueError("NaN or infinite depth")
    values = torch.from_numpy(np.ascontiguousarray(depth, dtype=np.float32))[None, None]
    if values.shape[-2:] != size:
        values = F.interpolate(values, size, mode="bilinear", antialias=True)
    resized = values[0, 0].double().numpy()  # in float32 a map with a small spread would not reach 65535
    least, most = float(resized.min()), float(resized.max())
    spread = most - least
    levels = (resized - least) * (65535 / spread) if spread > 0 else np.zeros_like(resized)
    about = {"depth_kind": "relative_inverse", "depth_min": least, "depth_max": most}
    # String matching finds nothing in the low byte of 16 bits: Huffman codes alone take 2/3 of the time, and no more space.
    png = _png(Image.fromarray(levels.round().astype(np.uint16)), compress_type=zlib.Z_HUFFMAN_ONLY)
    return {DEPTH_FIELD: png}, about


def segmentation_target(ids: np.ndarray, size: tuple[int, int]) -> Target:
    """uint8 (h, w) of ids -> an indexed PNG of `size` (nearest neighbor) and the number of masks before resizing."""
    masks = int(ids.max())
    picture = Image.fromarray(ids)
    if picture.size != size[::-1]:
        picture = picture.resize(size[::-1], Image.Resampling.NEAREST)
    picture.putpalette(_PALETTE)
    return {SEGMENTATION_FIELD: _png(picture)}, {"segmentation_masks": masks}


def clip_target(similarity: float, size: tuple[int, int]) -> Target:
    """A cosine -> the json's number; `size` is not used. Raises ValueError for NaN and infinity."""
    if not np.isfinite(similarity):
        raise ValueError("NaN or infinite similarity")
    return {}, {SIMILARITY: round(similarity, 6)}


def codes_target(codes: PictureCodes, size: tuple[int, int]) -> Target:
    """Codes -> their field; `size` is not used."""
    return {CODES_FIELD: write_codes(codes)}, {}


TARGETS: dict[str, Callable[[Any, tuple[int, int]], Target]] = {
    "depth": depth_target,
    "segmentation": segmentation_target,
    "clip": clip_target,
    "codes": codes_target,
}
"""Task -> function that makes its target from a prediction and the target's (height, width)."""


def _viewing_palette() -> bytes:
    """256 colors for picture viewers; training uses its own. All are written: with fewer than 17 the PNG would get 4 bits
    a pixel, which some decoders (torchvision's) misread."""
    hues = (number * 0.6180339887 % 1.0 for number in range(255))  # the golden ratio keeps neighbors apart
    colors = [(0.0, 0.0, 0.0), *(colorsys.hsv_to_rgb(hue, 0.8, 1.0) for hue in hues)]
    return bytes(round(255 * channel) for color in colors for channel in color)


_PALETTE = _viewing_palette()


def _png(picture: Image.Image, **options: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, "png", compress_level=1, **options)
    return out.getvalue()
