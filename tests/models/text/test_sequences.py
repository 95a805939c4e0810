"""Stacking of rows of different lengths."""

from __future__ import annotations

import pytest
import torch

from megaunigame.models.text.sequences import MULTIPLE, TokenSequence, pad
from megaunigame.step.inputs import PassInputs
from megaunigame.step.labels import label_positions

PAD = 9


def row(length: int, labeled: int) -> TokenSequence:
    row = TokenSequence()
    row.add(list(range(length - labeled)))
    row.add([1] * labeled, labeled=True)
    return row


def padded(lengths: list[int], left: bool = False) -> PassInputs:
    rows = [row(length, 2 + number) for number, length in enumerate(lengths)]
    return pad(rows, PAD, left=left, terms=[0] * len(rows), keys=[""] * len(rows))


@pytest.mark.parametrize(("longest", "size"), [(MULTIPLE - 1, MULTIPLE), (MULTIPLE, MULTIPLE), (MULTIPLE + 1, 2 * MULTIPLE)])
def test_rows_are_padded_to_the_next_multiple(longest, size):
    assert padded([4, longest]).tokens.shape == (2, size)


def test_labels_are_where_the_collator_says():
    inputs = padded([4, 6, 11])
    assert inputs.label_positions.tolist() == [[2, 3, 0, 0], [3, 4, 5, 0], [7, 8, 9, 10]]
    assert torch.equal(inputs.label_positions, label_positions(inputs.labels))
    assert inputs.counts.tolist() == [2, 3, 4]


@pytest.mark.parametrize(("lengths", "left", "front"), [([4, 8], True, True), ([8, 8], True, False), ([4, 8], False, False)])
def test_padding_in_front_of_some_row_is_announced(lengths, left, front):
    assert padded(lengths, left).front_padding is front
