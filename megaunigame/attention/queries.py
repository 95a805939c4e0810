"""Which queries of a pass are tapped: for each row all of a set of positions, or a random part.

Shapes depend on arguments only, and nothing is read back from the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Queries(NamedTuple):
    """R positions of each row."""

    positions: Tensor
    """(B, R) int64."""
    counted: Tensor
    """(B, R) bool: False where a row has fewer than R queries."""
    reach: list[tuple[int, int]]
    """For the r-th query: the smallest and the largest number of positions that it sees in a row (causal attention). (0, S)
    is always right; narrower bounds save work."""


def answers(label_positions: Tensor, most: int, length: int) -> Queries:
    """At most `most` (0: all) of the labels (B, P) of rows of `length` tokens (see `UnderstandInputs.label_positions`).

    Draws from torch's generator of the device of the positions.
    """
    positions, counted = _some(label_positions, label_positions > 0, most)
    return Queries(positions, counted, [(0, length)] * positions.shape[1])


def drawn_tokens(places: Sequence[int], rows: int, most: int, device: torch.device) -> Queries:
    """At most `most` (0: all) of the ascending `places`, drawn separately for each of `rows` rows, as tensors on `device`.

    Draws from torch's generator of the CPU.
    """
    reach = [(place + 1, place + 1) for place in places]
    positions = torch.tensor(places).expand(rows, -1)
    if 0 < most < len(places):
        positions, _ = _some(positions, torch.ones_like(positions, dtype=torch.bool), most)
        reach = list(zip((positions.amin(0) + 1).tolist(), (positions.amax(0) + 1).tolist(), strict=True))
    positions = positions.to(device, non_blocking=True)
    return Queries(positions, torch.ones_like(positions, dtype=torch.bool), reach)


def _some(positions: Tensor, counted: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """At most `most` entries of each row, drawn at random among those that count; the order is kept."""
    if not 0 < most < positions.shape[1]:
        return positions, counted
    order = counted + torch.rand(positions.shape, device=positions.device)  # entries that count sort above all others
    chosen = order.topk(most, dim=1).indices.sort(dim=1).values
    return positions.gather(1, chosen), counted.gather(1, chosen)
