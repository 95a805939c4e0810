"""Bytes of one sample to tensors. JSON and pictures only: nothing here can run code found in a shard."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from megaunigame.errors import DataError

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp")
DEPTH_FIELD = "depth.png"
SEGMENTATION_FIELD = "seg.png"
META_FIELD = "json"


Picture = Tensor | Callable[[], Tensor] | None
"""A decoded picture, how to decode it, or None where the sample has none."""


class Sample:
    """One sample: its JSON, and pictures that are decoded when they are first asked for.

    Text-only samples have no image; depth and segmentation are there only if the shards carry them. The first use of a
    picture that cannot be decoded raises DataError.
    """

    def __init__(
        self, key: str, meta: dict[str, Any], image: Picture = None, depth: Picture = None, segmentation: Picture = None
    ):
        self.key = key
        self.meta = meta
        """The sample's JSON: `conversations`, perhaps `caption`, `objects`, ..."""
        self._image = image
        self._depth = depth
        self._segmentation = segmentation

    @property
    def image(self) -> Tensor | None:
        """uint8 (3, H, W), RGB, as stored (an EXIF rotation is not applied)."""
        self._image = _made(self._image)
        return self._image

    @property
    def depth(self) -> Tensor | None:
        """int32 (H, W) in 0..65535: relative inverse depth, near = large."""
        self._depth = _made(self._depth)
        return self._depth

    @property
    def segmentation(self) -> Tensor | None:
        """uint8 (H, W): object ids, 0 = background."""
        self._segmentation = _made(self._segmentation)
        return self._segmentation

    def decoded(self) -> Sample:
        """This sample with every picture decoded now. Raises DataError for the first that cannot be."""
        self._image, self._depth, self._segmentation = self.image, self.depth, self.segmentation
        return self


def decode_sample(key: str, fields: Mapping[str, bytes]) -> Sample:
    """The sample of these raw fields; unknown fields are ignored, pictures are decoded at their first use.

    Raises DataError, naming key and field: here for a missing or wrong JSON, at the first use of a picture when it is not
    a picture or has the wrong depth of bits.
    """
    if META_FIELD not in fields:
        _refuse(key, META_FIELD, f"is missing; the sample has {sorted(fields)}")
    stored = next((name for name in IMAGE_FIELDS if name in fields), None)
    return Sample(
        key,
        _meta(key, fields[META_FIELD]),
        image=None if stored is None else partial(_image, key, stored, fields[stored]),
        depth=partial(_depth, key, fields[DEPTH_FIELD]) if DEPTH_FIELD in fields else None,
        segmentation=partial(_segmentation, key, fields[SEGMENTATION_FIELD]) if SEGMENTATION_FIELD in fields else None,
    )


def _made(picture: Picture) -> Tensor | None:
    return picture() if callable(picture) else picture


def _refuse(key: str, field: str, problem: str) -> NoReturn:
    raise DataError(f"Sample {key!r}: field {field!r} {problem}. Mend the source and pack the shard again.")


def _meta(key: str, data: bytes) -> dict[str, Any]:
    try:
        meta = json.loads(data)
    except ValueError as error:
        _refuse(key, META_FIELD, f"is not JSON ({error})")
    if not isinstance(meta, dict):
        _refuse(key, META_FIELD, f"holds a JSON {type(meta).__name__}; an object with `conversations` is wanted")
    return meta


def _pixels(key: str, field: str, data: bytes, mode: ImageReadMode) -> Tensor:
    """(C, H, W), uint8 or uint16 as stored."""
    try:
        pixels = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=mode)
    except (RuntimeError, ValueError) as error:  # torchvision has no error type of its own; ValueError: zero bytes
        reason = str(error).split(", ", 2)[-1].split(". ")[0].rstrip(".")  # "function, file:line, reason. advice"
        _refuse(key, field, f"({len(data)} bytes) is not a readable JPEG, PNG or WebP picture: {reason}")
    if pixels.dim() != 3:
        _refuse(key, field, f"is an animation of {len(pixels)} frames; one picture is wanted")
    return pixels


def _image(key: str, field: str, data: bytes) -> Tensor:
    pixels = _pixels(key, field, data, ImageReadMode.RGB)
    if pixels.dtype == torch.uint16:  # PNG with 16 bits a channel
        pixels = pixels.to(torch.int32).bitwise_right_shift(8).to(torch.uint8)
    return pixels


def _depth(key: str, data: bytes) -> Tensor:
    pixels = _pixels(key, DEPTH_FIELD, data, ImageReadMode.UNCHANGED)
    if pixels.dtype != torch.uint16 or len(pixels) != 1:
        bits = 16 if pixels.dtype == torch.uint16 else 8
        _refuse(key, DEPTH_FIELD, f"has {len(pixels)} channel(s) of {bits} bits; one channel of 16 bits is wanted")
    return pixels[0].to(torch.int32)


def _segmentation(key: str, data: bytes) -> Tensor:
    # Not torchvision: it returns uninitialised memory for palettes of 16 colours or fewer, which encoders store with
    # 1, 2 or 4 bits a pixel. Pillow unpacks them.
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            mode, ids = picture.mode, np.array(picture)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for a broken PNG chunk
        _refuse(key, SEGMENTATION_FIELD, f"({len(data)} bytes) is not a readable PNG ({type(error).__name__})")
    if mode not in ("P", "L"):
        _refuse(key, SEGMENTATION_FIELD, f"is a PNG of mode {mode}; ids in a palette (P) or 8-bit grey (L) PNG are wanted")
    return torch.from_numpy(ids)
