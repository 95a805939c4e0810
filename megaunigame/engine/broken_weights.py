"""Finds weights that are not finite. Every rank looks at what it holds; nothing is gathered but names and counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.ranks import Ranks


@dataclass(frozen=True)
class BrokenWeight:
    """A parameter or buffer with elements that are not finite."""

    name: str
    elements: int
    """That are not finite, over all ranks."""
    of: int
    """Elements of the whole weight."""
    trained: bool


def broken_weights(model: UnifiedModel, world: Ranks, partitioned: bool) -> list[BrokenWeight]:
    """Collective: every weight that is not finite, frozen ones, buffers and frozen tokenizers included, in this order.

    `partitioned`: ranks hold slices, whose counts are added; otherwise each holds the same weight whole, or should.
    """
    tensors: list[tuple[str, Tensor, Tensor]] = [(name, p, _own_part(p)) for name, p in model.named_parameters()]
    tensors += [(name, b, b) for name, b in model.named_buffers() if b.is_floating_point()]
    for of, module in model.frozen_modules().items():
        tensors += [(f"{of}: {name}", t, t.detach()) for name, t in module.state_dict().items() if t.is_floating_point()]
    counts = torch.stack([(~torch.isfinite(part)).sum().to(world.device) for _, _, part in tensors])
    everywhere = world.all_gather(counts).cpu()  # (W, n)
    found = []
    for (name, whole, _), per_rank in zip(tensors, everywhere.unbind(1), strict=True):
        sliced = partitioned and hasattr(whole, "ds_id")
        elements = int(per_rank.sum() if sliced else per_rank.max())
        if elements:
            size = getattr(whole, "ds_numel", whole.numel())
            found.append(BrokenWeight(name, elements, size, isinstance(whole, nn.Parameter) and whole.requires_grad))
    return found


def _own_part(parameter: Any) -> Tensor:
    """The elements of a parameter that this rank holds, without padding, which may be anything."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach()
    part = parameter.ds_tensor.detach()
    rank = torch.distributed.get_rank(parameter.ds_process_group)
    held = min(max(parameter.ds_numel - rank * part.numel(), 0), part.numel())
    return part.flatten()[:held]
