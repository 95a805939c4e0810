"""Codes that a family's frozen tokenizer gave to the pictures of a sample before the run, and their place in a pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class StoredCodes(Protocol):
    """Codes of all pictures of a sample, perhaps not read yet: runs and rows that use no codes leave them unread."""

    def read(self) -> PictureCodes:
        """Raises DataError, at every use, if they cannot be read."""
        ...


@dataclass(frozen=True)
class PictureCodes:
    """Codes of all pictures of a sample, stored with it."""

    tokenizer: str
    """Identity of the tokenizer (`megaunigame.models.weights.identity`)."""
    codebook: int
    """V: codes are 0 to V - 1."""
    grids: Mapping[tuple[str, int], Tensor]
    """(geometry, side of the square in pixels) -> (I, h, w) int64, one grid for each picture."""

    @property
    def made_for(self) -> str:
        """The geometries and sides, for messages."""
        return ", ".join(f"{geometry} at {side} pixels" for geometry, side in self.grids)

    def read(self) -> PictureCodes:
        """These; they are read."""
        return self


def stacked(rows: Sequence[Tensor | None], places: int) -> tuple[Tensor | None, list[bool]]:
    """Codes (n, N) of the n <= places pictures of each row; None: the tokenizer must encode them in the pass.

    Returns (B, places, N), 0 where there is no picture or no code, and for each row whether it needs no encoding; (None, [])
    when no row has codes and there is something to encode.
    """
    given = [codes for codes in rows if codes is not None]
    if len(given) < len(rows) and not any(map(len, given)):
        return None, []
    filled = torch.zeros(len(rows), places, given[0].shape[1], dtype=torch.long)
    for row, codes in zip(filled, rows, strict=True):
        if codes is not None:
            row[: len(codes)] = codes
    return filled, [codes is not None for codes in rows]


def completed(stored: Tensor | None, coded: Sequence[bool], pixels: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Codes (B, ...) of all rows: `stored` ones, and `encode` of the pixels (B, ...) of the rows that are not `coded`.

    The host knows which these are, so nothing is read from the device. Ranks may encode other numbers of rows, or none: the
    frozen tokenizer is whole on every rank, so encoding is not a collective and cannot bring the ranks out of step.
    """
    if stored is None:
        return encode(pixels)
    missing = [row for row, known in enumerate(coded) if not known]
    if not missing:
        return stored
    rows = list(stored.unbind(0))
    encoded = encode(torch.cat([pixels[row : row + 1] for row in missing]))
    for row, codes in zip(missing, encoded.unbind(0), strict=True):
        rows[row] = codes
    return torch.stack(rows)
