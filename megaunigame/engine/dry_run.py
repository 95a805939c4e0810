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

    Goes through the module, not the engine, and asks autograd for the gradient of a few small parameters only: the
    engine's accumulation state stays untouched, and the whole graph is still walked.
    """
    probes = _one_per_group(learner.module)
    for name, inputs in largest.items():
        output = learner.module(name, inputs.to(learner.world.device))
        torch.autograd.grad(output.loss_sum.sum(), probes, allow_unused=True)


def _one_per_group(model: UnifiedModel) -> list[nn.Parameter]:
    """The first trained parameter of each group: as deep as the backward goes."""
    first: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            first.setdefault(group_label(model, name), parameter)
    return list(first.values())
