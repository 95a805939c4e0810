"""A step on the largest legal rows before step 1: out-of-memory and shape errors show in minute 1, not in hour 9."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from megaunigame.engine.parameters import element_count, group_label
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel
from megaunigame.passes import PassInputs

GIB = 2**30


def dry_run(
    learner: Learner, largest: dict[str, PassInputs], losses: Sequence[Tensor] = (), leaves: Sequence[Tensor] = ()
) -> None:
    """Forward and backward of every pass, leaving no trace: no gradient is kept, nothing is updated.

    `largest` is on the device. `losses` and `leaves`: what objectives let the same backward walk, and reach.

    Goes through the module, not the engine: its accumulation state stays untouched. As in a real micro-step, the graphs of
    all passes are alive at once. Autograd is asked for one parameter's gradient per group, which walks the whole graph;
    what the other weight gradients and the update need besides is `uncovered_bytes`.
    """
    walk(learner.module, largest, losses, leaves)


def walk(
    model: UnifiedModel, largest: dict[str, PassInputs], losses: Sequence[Tensor] = (), leaves: Sequence[Tensor] = ()
) -> None:
    """The dry run of a model, without an engine."""
    outputs = [model(name, inputs) for name, inputs in largest.items()]
    walked = [*losses, *(output.loss_sum.sum() for output in outputs)]
    walked += [output.attention.keys.sum() for output in outputs if output.attention is not None]
    torch.autograd.grad(torch.stack(walked).sum(), [*_one_per_group(model), *leaves], allow_unused=True)


def uncovered_bytes(model: UnifiedModel, ds_config: dict[str, Any], world_size: int) -> int:
    """What a step takes on each rank at most besides what the dry run has done.

    The largest weight gradient whole, its copy in the dtype of the reduction and this rank's part of the sum; a bucket of
    gradients that wait for their reduction (two, where it overlaps with the backward), with their copies; and the gradient in
    float32 of the slice that is updated at a time. Masters, moments and accumulated gradients exist before the dry run.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    zero = ds_config["zero_optimization"]
    reduced = 2 if ds_config["communication_data_type"] == "bf16" else 4
    largest = max(trained, key=element_count)
    elements = sum(map(element_count, trained))
    alone = element_count(largest) * (largest.element_size() + reduced) + element_count(largest) * reduced // world_size
    buckets = 2 if zero.get("overlap_comm") else 1
    waiting = buckets * min(zero.get("reduce_bucket_size", elements), elements) * (largest.element_size() + reduced)
    updated = 4 * min(zero.get("sub_group_size", elements), -(-elements // world_size))
    return alone + waiting + updated


def check_peak(peak: int, uncovered: int, capacity: int) -> None:
    """Raise ConfigError when the `peak` of the dry run and what it does not cover exceed the memory of the device."""
    if peak + uncovered > capacity:
        raise ConfigError(
            f"The largest step does not fit: the dry run took {peak / GIB:.1f} GiB and gradients and update take up to "
            f"{uncovered / GIB:.1f} GiB more, where the GPU has {capacity / GIB:.1f} GiB. Type "
            "model.gradient_checkpointing=true, fewer rows in the objectives with a larger batch.accumulation, a smaller "
            "model.max_length, or more ranks; python launch/plan.py RECIPE shows what takes the memory."
        )


def _one_per_group(model: UnifiedModel) -> list[nn.Parameter]:
    """The first trained parameter of each group: as deep as its backward goes."""
    first: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            first.setdefault(group_label(model, name), parameter)
    return list(first.values())
