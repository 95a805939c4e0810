"""Random numbers of ranks that share their rows; what they compute is in tests/multi_process/shared_rows.py."""

from __future__ import annotations

import torch

from megaunigame.models.causal.shared_rows import _own_dropout
from megaunigame.parallel.ranks import Ranks


def test_ranks_drop_out_other_numbers_and_go_on_with_the_same():
    """The same mask for every part of a row would be a pattern in it; other numbers after the layers would be other rows."""
    inside, after = [], []
    for rank in range(3):
        torch.manual_seed(7)
        torch.rand(2)
        with _own_dropout(Ranks(rank, 3, rank, torch.device("cpu")), torch.device("cpu")):
            inside.append(torch.rand(4).tolist())
        after.append(torch.rand(4).tolist())
    assert len({*map(tuple, inside)}) == 3 and len({*map(tuple, after)}) == 1
