"""A step on the largest legal rows before step 1: out-of-memory and shape errors show in minute 1, not in hour 9."""

from __future__ import annotations

import torch
from torch import nn

from megaunigame.engine.parameters import group_label
from megaunigame.engine.zero3 import Learner
from megaunigame.models.base import UnifiedModel
from megaunigame.passes import PassInputs


def dry_run(learner: Learner, largest: dict[str, PassInputs]) -> None:
    """Forward and backward of every pass, leaving no trace: no gradient is kept, nothing is updated.

    Goes through the module, not the engine: its accumulation state stays untouched. As in a real micro-step, the graphs of
    all passes are alive at once. Autograd is asked for one parameter's gradient per group, which walks the whole graph;
    the other weight gradients (`bytes per rank` of the plan) come on top.
    """
    outputs = [learner.module(name, inputs.to(learner.world.device)) for name, inputs in largest.items()]
    losses = [output.loss_sum.sum() for output in outputs]
    losses += [output.attention.keys.sum() for output in outputs if output.attention is not None]
    torch.autograd.grad(torch.stack(losses).sum(), _one_per_group(learner.module), allow_unused=True)


def _one_per_group(model: UnifiedModel) -> list[nn.Parameter]:
    """The first trained parameter of each group: as deep as its backward goes."""
    first: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            first.setdefault(group_label(model, name), parameter)
    return list(first.values())
