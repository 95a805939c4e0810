"""Token sequences of rows as lists, and their stacking into the tensors of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megaunigame.step.inputs import IGNORE

MULTIPLE = 8
"""Sequences are padded to a multiple of this."""


@dataclass
class TokenSequence:
    """The sequence of one row before padding; the lists have equal length."""

    tokens: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    image: list[bool] = field(default_factory=list)
    """Whether a visual token replaces the token."""
    segments: list[int] = field(default_factory=list)
    intact: bool = True
    """False: a text of it was cut, or its condition was dropped. A turn left out leaves the others whole."""
    cut: bool = False
    """Some of its text was cut, or a turn was left out."""
    escaped: int = 0
    """Control tokens that were written in its texts, and stayed text."""

    def add(self, tokens: list[int], *, labeled: bool = False, image: bool = False, segment: int = 0) -> None:
        self.tokens += tokens
        self.labels += tokens if labeled else [IGNORE] * len(tokens)
        self.image += [image] * len(tokens)
        self.segments += [segment] * len(tokens)

    def join(self, after: TokenSequence) -> None:
        """Add the tokens of another sequence."""
        self.tokens += after.tokens
        self.labels += after.labels
        self.image += after.image
        self.segments += after.segments

    def __len__(self) -> int:
        return len(self.tokens)


def pad(columns: Sequence[Sequence[Any]], fill: Any, *, left: bool) -> Tensor:
    """Lists of different lengths -> (B, S), filled on one side; S is the next multiple of `MULTIPLE`."""
    size = -(-max(map(len, columns)) // MULTIPLE) * MULTIPLE
    padded = np.full((len(columns), size), fill)  # torch.tensor of lists takes seven times as long
    for row, column in zip(padded, columns, strict=True):
        (row[size - len(column) :] if left else row[: len(column)])[:] = column
    return torch.from_numpy(padded)


def stack_pictures(pictures: Sequence[Sequence[Tensor]], side: int) -> tuple[Tensor, Tensor]:
    """uint8 squares (3, side, side) per row -> uint8 (B, I, 3, side, side), and (B, I) validity; I >= 1 even without any."""
    most = max(1, *map(len, pictures))
    filled = all(len(own) == most for own in pictures)
    stacked = (torch.empty if filled else torch.zeros)(len(pictures), most, 3, side, side, dtype=torch.uint8)
    valid = torch.zeros(len(pictures), most, dtype=torch.bool)
    for row, own in enumerate(pictures):
        for number, picture in enumerate(own):
            stacked[row, number] = picture
            valid[row, number] = True
    return stacked, valid


def left_padded(values: Tensor, width: int) -> Tensor:
    """(B, S, ...) -> (B, width, ...), zeros in front."""
    missing = width - values.shape[1]
    return torch.cat([values.new_zeros(len(values), missing, *values.shape[2:]), values], dim=1)
