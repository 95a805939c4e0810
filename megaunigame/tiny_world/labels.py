"""Labels of the square cells of a scene: the dense targets of the vision tower's warm-up and of the oracle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.judges.scenes import COLORS, SHAPES
from megaunigame.tiny_world.scenes import Scenes

OBJECT_SHARE = 0.3
"""A cell shows an object when one object covers at least this fraction of its pixels."""
IGNORED = -100


@dataclass
class CellLabels:
    """Labels of h x w cells of N scenes."""

    color: Tensor
    """int64 (N, h, w): 0 = background, 1 + index into COLORS."""
    shape: Tensor
    """int64 (N, h, w): index into SHAPES, IGNORED on background."""
    depth: Tensor
    """float32 (N, h, w): mean relative inverse depth, 0 (far) .. 1 (near)."""


def accuracy(color: Tensor, shape: Tensor, true_color: Tensor, true_shape: Tensor) -> dict[str, float]:
    """Shares of the cells of objects whose color and shape are right; all int64 of one shape."""
    on_object = true_shape != IGNORED
    right = {"color": color == true_color, "shape": shape == true_shape}
    return {name: float(cells[on_object].float().mean()) for name, cells in right.items()}


def cell_labels(scenes: Scenes, cell: int) -> CellLabels:
    """Labels of cells of `cell` x `cell` pixels; the object that covers most of a cell owns it."""
    n, height, width = scenes.segmentation.shape
    highest = int(scenes.segmentation.max())
    color_of = torch.zeros(n, highest + 1, dtype=torch.int64)
    shape_of = torch.full((n, highest + 1), IGNORED, dtype=torch.int64)
    for row, meta in enumerate(scenes.metas):
        for thing in meta["objects"]:
            color_of[row, thing["id"]] = 1 + COLORS.index(thing["color"])
            shape_of[row, thing["id"]] = SHAPES.index(thing["shape"])
    shares = torch.stack(
        [F.avg_pool2d((scenes.segmentation == i).float().unsqueeze(1), cell)[:, 0] for i in range(1, highest + 1)]
    )  # (ids, N, h, w)
    share, owner = shares.max(dim=0)
    owner = torch.where(share >= OBJECT_SHARE, owner + 1, 0)
    flat = owner.view(n, -1)
    depth = F.avg_pool2d(scenes.pictures["depth"][:, :1].float() / 255, cell)[:, 0]
    return CellLabels(color_of.gather(1, flat).view_as(owner), shape_of.gather(1, flat).view_as(owner), depth)
