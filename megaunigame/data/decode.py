"""Bytes of one sample to tensors. JSON and pictures only: nothing here can run code found in a shard."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass
class Sample:
    """One decoded sample. Text-only samples have no image; the targets are there only if the shards carry them."""

    key: str
    meta: dict[str, Any]
    """The sample's JSON: `conversations`, perhaps `caption`, `objects`, ..."""
    image: Tensor | None = None
    """uint8 (3, H, W), RGB, as stored (an EXIF rotation is not applied)."""
    depth: Tensor | None = None
    """int32 (H, W) in 0..65535: relative inverse depth, near = large."""
    segmentation: Tensor | None = None
    """uint8 (H, W): object ids, 0 = background."""


def decode_sample(key: str, fields: Mapping[str, bytes]) -> Sample:
    """Decode every known field of a sample; unknown fields are ignored.

    Raises DataError, naming key and field, for anything that cannot be decoded or has the wrong depth of bits.
    """
    if META_FIELD not in fields:
        _refuse(key, META_FIELD, f"is missing; the sample has {sorted(fields)}")
    sample = Sample(key, _meta(key, fields[META_FIELD]))
    for name in IMAGE_FIELDS:
        if name in fields:
            sample.image = _image(key, name, fields[name])
            break
    if DEPTH_FIELD in fields:
        sample.depth = _depth(key, fields[DEPTH_FIELD])
    if SEGMENTATION_FIELD in fields:
        sample.segmentation = _segmentation(key, fields[SEGMENTATION_FIELD])
    return sample


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
