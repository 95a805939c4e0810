"""Token sequences of rows as lists, and their stacking into the tensors of a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megaunigame.step.inputs import IGNORE, PassInputs
from megaunigame.step.labels import label_positions

MULTIPLE = 8
"""Sequences are padded to a multiple of this."""


@dataclass
class TokenSequence:
    """The sequence of one row before padding; the lists have equal length."""

    tokens: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    slots: list[bool] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    intact: bool = True
    """False: some of its text was cut or dropped."""

    def add(self, tokens: list[int], *, labeled: bool = False, slots: bool = False, segment: int = 0) -> None:
        self.tokens += tokens
        self.labels += tokens if labeled else [IGNORE] * len(tokens)
        self.slots += [slots] * len(tokens)
        self.segments += [segment] * len(tokens)

    def cut(self, length: int) -> None:
        """Drop everything from position `length` on."""
        for values in (self.tokens, self.labels, self.slots, self.segments):
            del values[length:]

    def __len__(self) -> int:
        return len(self.tokens)


def pad(sequences: list[TokenSequence], pad_id: int, *, left: bool, terms: Sequence[int], keys: Sequence[str]) -> PassInputs:
    """Stack sequences of different lengths; every field is set, the caller drops those its pass does not have."""
    size = -(-max(map(len, sequences)) // MULTIPLE) * MULTIPLE
    shape = (len(sequences), size)
    tokens = torch.full(shape, pad_id)
    labels = torch.full(shape, IGNORE)
    segments = torch.zeros(shape, dtype=torch.long)
    attention, slots = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for index, sequence in enumerate(sequences):
        where = slice(size - len(sequence), size) if left else slice(0, len(sequence))
        tokens[index, where] = torch.tensor(sequence.tokens)
        labels[index, where] = torch.tensor(sequence.labels)
        segments[index, where] = torch.tensor(sequence.segments)
        slots[index, where] = torch.tensor(sequence.slots)
        attention[index, where] = True
    return PassInputs(
        tokens=tokens,
        attention=attention,
        terms=torch.tensor(list(terms), dtype=torch.long),
        counts=(labels != IGNORE).sum(1).float(),
        labels=labels,
        label_positions=label_positions(labels),
        front_padding=left and any(len(sequence) < size for sequence in sequences),
        segments=segments,
        image_slots=slots,
        intact=torch.tensor([sequence.intact for sequence in sequences]),
        keys=list(keys),
    )


def stack_sources(images: list[list[Tensor]], side: int, prepare: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Pictures per row -> (B, I, 3, side, side) and (B, I) validity; I >= 1 even without pictures.

    `prepare` makes a normalized picture (3, side, side) of a uint8 one of any size.
    """
    most = max(1, *map(len, images))
    pixels = torch.zeros(len(images), most, 3, side, side)
    valid = torch.zeros(len(images), most, dtype=torch.bool)
    for row, pictures in enumerate(images):
        for number, picture in enumerate(pictures):
            pixels[row, number] = prepare(picture)
            valid[row, number] = True
    return pixels, valid


def left_padded(values: Tensor, width: int) -> Tensor:
    """(B, S, ...) -> (B, width, ...), zeros in front."""
    missing = width - values.shape[1]
    return torch.cat([values.new_zeros(len(values), missing, *values.shape[2:]), values], dim=1)
