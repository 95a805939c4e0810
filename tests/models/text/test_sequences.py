"""Stacking of rows of different lengths."""

from __future__ import annotations

import pytest
import torch

from megaunigame.models.text.sequences import MULTIPLE, pad

PAD = 9


@pytest.mark.parametrize(("longest", "size"), [(MULTIPLE - 1, MULTIPLE), (MULTIPLE, MULTIPLE), (MULTIPLE + 1, 2 * MULTIPLE)])
def test_rows_are_padded_to_the_next_multiple(longest, size):
    assert pad([[1] * 4, [1] * longest], PAD, left=False).shape == (2, size)


@pytest.mark.parametrize("left", [False, True], ids=["end", "front"])
def test_rows_are_filled_on_one_side(left):
    whole, part, padding = list(range(MULTIPLE)), [5, 6], [PAD] * (MULTIPLE - 2)
    assert pad([whole, part], PAD, left=left).tolist() == [whole, padding + part if left else part + padding]
    assert pad([[True]], False, left=left).dtype == torch.bool
