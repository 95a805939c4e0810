"""Fixed 2-D position tables, computed where they are read: a checkpoint holds them too, but nobody trains them."""

from __future__ import annotations

import torch
from torch import Tensor


def grid_ids(height: int, width: int, side: int, device: torch.device) -> Tensor:
    """(height * width,) int64: row * side + column of the places of a grid, line by line."""
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return (rows.unsqueeze(1) * side + columns).flatten()


def table_rows(height: int, width: int, size: int, device: torch.device) -> Tensor:
    """(height * width, size) float32: the table at the places of a grid, line by line.

    The first half of a row is about the column, the second about the line; a half is sines, then cosines.
    """
    quarter = size // 4
    scale = 10000.0 ** (-torch.arange(quarter, device=device, dtype=torch.float64) / quarter)
    lines, columns = (_waves(torch.arange(count, device=device, dtype=torch.float64), scale) for count in (height, width))
    both = columns.expand(height, -1, -1), lines.unsqueeze(1).expand(-1, width, -1)
    return torch.cat(both, -1).flatten(0, 1).float()


def _waves(places: Tensor, scale: Tensor) -> Tensor:
    angles = places.unsqueeze(1) * scale
    return torch.cat([angles.sin(), angles.cos()], 1)


def whole_table(side: int, size: int) -> Tensor:
    """(side^2, size) float32, as checkpoints hold it."""
    return table_rows(side, side, size, torch.device("cpu"))
