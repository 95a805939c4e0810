"""Bytes of one sample to tensors. JSON and pictures only: nothing here can run code from a shard."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from megaunigame.data.codes import UnreadCodes
from megaunigame.errors import DataError
from megaunigame.pictures.pillow import opened
from megaunigame.pictures.reading import read_picture
from megaunigame.pictures.rules import DEFAULT_RULES, PictureError, PictureRules
from megaunigame.step.codes import PictureCodes, StoredCodes
from megaunigame.storage.foreign_text import one_line, quoted
from megaunigame.storage.untrusted_json import DEEPEST, is_deeper_than, parse

IMAGE_FIELDS = (
    *("jpg", "jpeg", "png", "webp", "avif", "bmp", "gif", "heic", "heif", "j2k", "jfif", "jp2", "jpe", "mpo", "pgm", "pnm"),
    *("ppm", "tif", "tiff"),
)
"""Fields that may hold the picture of a sample; the first one present is used. What it is, its content says."""
_NUMBERED_FIELD = re.compile(rf"picture\d+\.(?:{'|'.join(IMAGE_FIELDS)})")
FURTHER_FIELD = re.compile(rf"picture([2-9]|[1-9]\d+)\.(?:{'|'.join(IMAGE_FIELDS)})")
"""Fields of the second and later pictures of a sample: `picture2.jpg`, `picture3.png`, ..."""
DEPTH_FIELD = "depth.png"
SEGMENTATION_FIELD = "seg.png"
CONTOURS_FIELD = "contours.png"
"""Edges of segments as they are drawn, where a data set has no map of ids."""
META_FIELD = "json"
CODES_FIELD = "codes.bin"
"""Codes of all pictures of the sample."""
LARGEST_JSON = 16 * 1024**2
"""Bytes of the JSON of a sample."""

IMAGE, DEPTH, SEGMENTATION, CONTOURS = "image", "depth", "segmentation", "contours"
"""Names of the pictures of a sample."""

Picture = Tensor | Callable[[], Tensor] | None
"""A decoded picture, its decoder, or None if the sample has none."""


class Sample:
    """One sample: its JSON, and pictures that are decoded at their first use.

    Text-only samples have no image; other pictures exist only if the shards have them.
    """

    def __init__(
        self,
        key: str,
        meta: dict[str, Any],
        *,
        further: Sequence[Tensor | Callable[[], Tensor]] = (),
        codes: StoredCodes | None = None,
        **pictures: Picture,
    ):
        """`pictures` by their names in `DECODERS`; `further`: images after the first; `codes`: of all images."""
        self.key = key
        self.meta = meta
        """The sample's JSON: `conversations`, and optionally `caption`, `objects`, ..."""
        self._pictures = {name: pictures.pop(name, None) for name in DECODERS}
        self._further: list[Tensor | Callable[[], Tensor]] = [*further]
        self.stored_codes = codes
        """Codes of `images`, not read; None if the sample has none."""
        if pictures:
            raise TypeError(f"A sample has no picture {', '.join(pictures)}; DECODERS has {', '.join(DECODERS)}.")

    def picture(self, name: str) -> Tensor | None:
        """The picture `name` as its decoder in `DECODERS` returns it, or None if the sample has none.

        Raises DataError, at every use, if it cannot be decoded.
        """
        picture = self._pictures[name]
        if callable(picture):
            picture = self._pictures[name] = picture()
        return picture

    @property
    def image(self) -> Tensor | None:
        """uint8 (3, H, W), RGB, as a viewer shows it (`read_picture`)."""
        return self.picture(IMAGE)

    @property
    def images(self) -> list[Tensor]:
        """All images in their order, each as `image`; none for a text-only sample."""
        if self.image is None:
            return []
        decoded = [picture() if callable(picture) else picture for picture in self._further]
        self._further = [*decoded]
        return [self.image, *decoded]

    def image_at(self, number: int) -> Tensor:
        """`images[number]`, counted from 0; decodes no other. Raises IndexError when the sample has no such image."""
        if not 0 <= number < self.image_count:
            raise IndexError(f"Sample {self.key} has no image {number}; it has {self.image_count}.")
        if number == 0:
            image = self.image
            assert image is not None  # by the count
            return image
        further = self._further[number - 1]
        if callable(further):
            further = self._further[number - 1] = further()
        return further

    @property
    def image_count(self) -> int:
        """Number of `images`; decodes none."""
        return 0 if self._pictures[IMAGE] is None else 1 + len(self._further)

    @property
    def codes(self) -> PictureCodes | None:
        """Stored codes of `images`, or None if the sample has none. Raises DataError, at every use, if they cannot be read."""
        return None if self.stored_codes is None else self.stored_codes.read()

    def codes_of(self, picture: Tensor | None) -> StoredCodes | None:
        """`stored_codes` if `picture` is the sample's first image itself; a copy, or a changed one, has other codes: None."""
        return self.stored_codes if picture is not None and picture is self._pictures[IMAGE] else None

    def decoded(self) -> Sample:
        """This sample with every picture and its codes decoded. Raises DataError for the first that cannot be."""
        for name in self._pictures:
            self.picture(name)
        _ = self.images, self.codes
        return self


def decode_sample(key: str, fields: Mapping[str, bytes], rules: PictureRules = DEFAULT_RULES) -> Sample:
    """The sample of these raw fields; unknown fields are ignored, pictures are decoded at their first use, by `rules`.

    Raises DataError, naming key and field: here for a missing or wrong JSON, at the first use of a picture that is not
    readable, has too many pixels or the wrong bit depth.
    """
    if META_FIELD not in fields:
        _refuse(key, META_FIELD, f"is missing; the sample has {quoted(sorted(fields), 300)}")
    pictures: dict[str, Picture] = {}
    for name, (stored_as, decoder) in DECODERS.items():
        field = next((field for field in stored_as if field in fields), None)
        pictures[name] = None if field is None else partial(decoder, key, field, fields[field], rules)
    decoder = DECODERS[IMAGE][1]
    further = [partial(decoder, key, field, fields[field], rules) for field in further_fields(fields)]
    numbered = next((field for field in fields if _NUMBERED_FIELD.fullmatch(field)), None)
    if numbered is not None and pictures[IMAGE] is None:
        _refuse(key, numbered, "is there without a first picture")
    codes = UnreadCodes(key, CODES_FIELD, fields[CODES_FIELD]) if CODES_FIELD in fields else None
    return Sample(key, meta_of(key, fields[META_FIELD]), further=further, codes=codes, **pictures)


def further_fields(fields: Iterable[str]) -> list[str]:
    """Those of the second and later pictures, in their order."""
    found = ((FURTHER_FIELD.fullmatch(field), field) for field in fields)
    return [field for _, field in sorted((int(match[1]), field) for match, field in found if match)]


def _refuse(key: str, field: str, problem: str) -> NoReturn:
    raise DataError(f"Sample {key!r}: field {field!r} {problem}. Fix the source and pack the shard again.")


def meta_of(key: str, data: bytes) -> dict[str, Any]:
    """The JSON of a sample. Raises DataError unless it is an object of text that can be written, within limits."""
    try:
        meta = parse(data, LARGEST_JSON)
        if is_deeper_than(meta):
            raise ValueError(f"nested deeper than {DEEPEST} lists and objects")
        # How half of a surrogate pair may be written; UTF-16 and UTF-32, which JSON may be in too, have zero bytes.
        if b"\\ud" in data or b"\\uD" in data or b"\xed" in data or b"\0" in data:
            json.dumps(meta, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        _refuse(key, META_FIELD, "holds a text that is not Unicode (half of a surrogate pair)")
    except ValueError as error:
        _refuse(key, META_FIELD, f"is not JSON that can be read ({one_line(error)})")
    if not isinstance(meta, dict):
        _refuse(key, META_FIELD, f"holds a JSON {type(meta).__name__}, not an object with `conversations`")
    return meta


def rgb_pixels(key: str, field: str, data: bytes, rules: PictureRules) -> Tensor:
    """uint8 (3, H, W), RGB, as a viewer shows it. Raises DataError."""
    try:
        return read_picture(data, rules)
    except PictureError as error:
        _refuse(key, field, f"({len(data)} bytes) is not a readable picture: {error}")


def _depth(key: str, field: str, data: bytes, rules: PictureRules) -> Tensor:
    """int32 (H, W) in 0..65535: relative inverse depth, near = large."""
    mode, levels = _map(key, field, data, rules)
    if mode not in ("I;16", "I"):
        _refuse(key, field, f"is a PNG of mode {mode}; legal is one channel of 16 bits")
    return torch.from_numpy(levels.astype(np.int32))


def _segmentation(key: str, field: str, data: bytes, rules: PictureRules) -> Tensor:
    """uint8 (H, W): object ids, 0 = background."""
    mode, ids = _map(key, field, data, rules)
    if mode not in ("P", "L"):
        _refuse(key, field, f"is a PNG of mode {mode}; legal are ids in a palette (P) or 8-bit gray (L) PNG")
    return torch.from_numpy(ids)


def _contours(key: str, field: str, data: bytes, rules: PictureRules) -> Tensor:
    """uint8 (H, W): 255 on a contour of a segment, 0 elsewhere."""
    mode, levels = _map(key, field, data, rules)
    if mode != "L":
        _refuse(key, field, f"is a PNG of mode {mode}; legal is 8-bit gray (L)")
    return torch.from_numpy(levels)


def _map(key: str, field: str, data: bytes, rules: PictureRules) -> tuple[str, np.ndarray]:
    """Pillow's mode of a PNG, and its numbers as stored."""
    # Not torchvision: it ends the process for damaged PNG files, and returns uninitialized memory for palettes of 16 colors
    # or fewer, which encoders store with 1, 2 or 4 bits a pixel.
    try:
        with opened(data, rules, formats=("PNG",)) as picture:
            return picture.mode, np.array(picture)
    except PictureError as error:
        _refuse(key, field, f"({len(data)} bytes) is not a readable PNG: {error}")


Decoder = Callable[[str, str, bytes, PictureRules], Tensor]

DECODERS: dict[str, tuple[tuple[str, ...], Decoder]] = {
    IMAGE: (IMAGE_FIELDS, rgb_pixels),
    DEPTH: ((DEPTH_FIELD,), _depth),
    SEGMENTATION: ((SEGMENTATION_FIELD,), _segmentation),
    CONTOURS: ((CONTOURS_FIELD,), _contours),
}
"""Name of a picture -> the fields of a shard that may hold it (the first one present is used), and its decoder, called with
(key of the sample, field, bytes, rules). A new stored target is a line here, or in the file of its representation."""
