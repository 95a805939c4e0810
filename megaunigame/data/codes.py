"""The field of a shard that holds the codes of a sample's pictures: one line of JSON, then the codes.

    {"codebook": 32768, "grids": [["crop", 720, 1, 90, 90]], "tokenizer": "..."}        GEOMETRY, side, I, h, w of each grid

The codes of the grids follow one another, little-endian, in 2 bytes each where the codebook allows, else in 4. Not safetensors:
its header has no fixed order, and shards have the same bytes whoever writes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NoReturn

import numpy as np
import torch

from megaunigame.errors import DataError
from megaunigame.step.codes import PictureCodes
from megaunigame.step.requests import GEOMETRIES
from megaunigame.storage.foreign_text import one_line, quoted
from megaunigame.storage.untrusted_json import parse

LONGEST_HEADER = 2**16
"""Bytes of the line of JSON."""


@dataclass(frozen=True)
class UnreadCodes:
    """The field as a shard holds it; read once, at its first use."""

    key: str
    field: str
    data: bytes

    def read(self) -> PictureCodes:
        """Raises DataError, at every use, if the field is damaged."""
        return self._content

    @cached_property
    def _content(self) -> PictureCodes:
        return read_codes(self.key, self.field, self.data)


def write_codes(codes: PictureCodes) -> bytes:
    """The bytes of the field."""
    shapes = [[*square, *grid.shape] for square, grid in codes.grids.items()]
    header = {"codebook": codes.codebook, "grids": shapes, "tokenizer": codes.tokenizer}
    arrays = [grid.numpy().astype(_stored_as(codes.codebook)).tobytes() for grid in codes.grids.values()]
    return b"".join([json.dumps(header).encode(), b"\n", *arrays])


def read_codes(key: str, field: str, data: bytes) -> PictureCodes:
    """The content of the field. Raises DataError when it is damaged or not in the form above."""

    def refuse(problem: str) -> NoReturn:
        raise DataError(
            f"Sample {key!r}: field {field!r} {problem}. Make it again: megaunigame prepare annotate --tasks codes (--help)."
        )

    line, _, rest = data.partition(b"\n")
    try:
        header = parse(line, LONGEST_HEADER)
        tokenizer, codebook = str(header["tokenizer"]), int(header["codebook"])
        shapes = {(str(geometry), int(side)): tuple(map(int, shape)) for geometry, side, *shape in header["grids"]}
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        refuse(f"({len(data)} bytes) does not begin with a line about codes ({type(error).__name__}: {one_line(error)})")
    grids_given = quoted(header["grids"], 200)
    wrong = [s for s, shape in shapes.items() if s[0] not in GEOMETRIES or len(shape) != 3 or min(shape) < 1 or codebook < 1]
    if wrong or not shapes:
        refuse(f"has the grids {grids_given} of {codebook} codes; wanted is GEOMETRY, side, pictures, height and width of each")
    if len({pictures for pictures, _, _ in shapes.values()}) > 1:
        refuse(f"has the grids {grids_given}; each must have all pictures")
    stored_as = _stored_as(codebook)
    if len(rest) != stored_as.itemsize * sum(map(prod, shapes.values())):
        refuse(f"has {len(rest)} bytes of codes, and its grids {grids_given} need another number")
    numbers = np.frombuffer(rest, stored_as).astype(np.int64)
    if numbers.max() >= codebook:
        refuse(f"has the code {numbers.max()}, and its codebook ends at {codebook - 1}")
    parts = torch.from_numpy(numbers).split([prod(shape) for shape in shapes.values()])
    grids = {square: part.view(shape) for (square, shape), part in zip(shapes.items(), parts, strict=True)}
    return PictureCodes(tokenizer, codebook, grids)


def _stored_as(codebook: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u2" if codebook <= 2**16 else "<u4")
