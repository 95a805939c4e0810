"""A picture as `pack` stores it: what training reads from the shard is what a viewer shows of the source."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile, get_sampling
from torch import Tensor

from megaunigame.pictures.header import header_of
from megaunigame.pictures.pillow import TURNS, opened, orientation_of
from megaunigame.pictures.reading import read_picture
from megaunigame.pictures.rules import PictureRules

ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
FINE = 98
"""JPEG quality: 47 dB or more to the pixels that are stored."""
BLOCK = 16
"""Pixels; the blocks of every chroma subsampling fit in."""
FULL, HALF_WIDTH, HALF_BOTH = 0, 1, 2
"""Pillow's numbers for chroma subsampling 4:4:4, 4:2:2 and 4:2:0."""


def stored_picture(content: bytes, rules: PictureRules) -> tuple[str, bytes, tuple[int, int]]:
    """Extension, bytes and (width, height) of a picture in a shard: opaque, upright, one frame.

    JPEG, PNG and WebP files that are so already are stored byte for byte. A JPEG with an EXIF turn is turned and encoded
    again, which changes pixels slightly (47 dB or more); everything else becomes a PNG of the same pixels.
    Raises PictureError for a picture that training would refuse.
    """
    pixels = read_picture(content, rules)  # all of it: a file cut short fails here, not in training
    height, width = pixels.shape[1:]
    header = header_of(content)
    if header is not None and header.plain:
        return ENDINGS[header.form], content, (width, height)
    if header is not None and header.form == "JPEG" and header.fast:
        return "jpg", _turned_jpeg(content, pixels, rules), (width, height)
    out = io.BytesIO()
    Image.fromarray(_rows(pixels)).save(out, "png", compress_level=1)
    return "png", out.getvalue(), (width, height)


def _turned_jpeg(content: bytes, pixels: Tensor, rules: PictureRules) -> bytes:
    """`pixels` (3, H, W), the upright picture of a JPEG file, as a JPEG without the tag.

    Where the blocks of both pictures coincide, the file's own quantization tables give back most coefficients, at the same
    size; elsewhere they would coarsen the picture a second time, and fine tables are used.
    """
    with opened(content, rules, formats=("JPEG",)) as source:
        orientation, mode, profile = orientation_of(source), source.mode, source.info.get("icc_profile")
        assert isinstance(source, JpegImageFile)
        tables = [np.reshape(table, (8, 8)) for _, table in sorted(source.quantization.items())]
        sampling = get_sampling(source)
    if orientation not in TURNS:  # a tag of 1 in an unusual form
        return content
    turned = Image.fromarray(_rows(pixels if mode == "RGB" else pixels[:1]))
    swapped = orientation >= 5
    settings: dict[str, Any] = {"quality": FINE, "subsampling": FULL}
    same_chroma = sampling in (FULL, HALF_BOTH) or (sampling == HALF_WIDTH and not swapped)
    if same_chroma and turned.width % BLOCK == 0 and turned.height % BLOCK == 0:
        turned_tables = [(table.T if swapped else table).ravel().tolist() for table in tables]
        settings = {"qtables": turned_tables, "subsampling": sampling}
    out = io.BytesIO()
    turned.save(out, "jpeg", icc_profile=profile, **settings)
    return out.getvalue()


def _rows(pixels: Tensor) -> np.ndarray:
    """uint8 (C, H, W) -> (H, W, C), or (H, W) for one channel."""
    rows = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    return rows[:, :, 0] if rows.shape[2] == 1 else rows
