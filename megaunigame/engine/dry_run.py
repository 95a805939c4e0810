"""A step on the largest legal rows before step 1: out-of-memory and shape errors show in minute 1, not in hour 9."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from megaunigame.engine.parameters import element_count, group_label
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import CapacityError
from megaunigame.models.base import UnifiedModel
from megaunigame.step.inputs import PassInputs, PassOutput

GIB = 2**30


def dry_run(
    model: UnifiedModel, largest: dict[str, PassInputs], losses: Sequence[Tensor] = (), leaves: Sequence[Tensor] = ()
) -> None:
    """Forward and backward of every pass: no gradient is kept, nothing is updated.

    `largest` is on the device. `losses` and `leaves`: what players add to the backward, and inputs it must reach.

    Takes the module, not the engine, whose accumulation state must not change. Autograd computes the gradient of one
    parameter per group, which walks the whole graph; the other weight gradients and the update are covered by
    `uncovered_bytes`.
    """
    ends: dict[str, Tensor] = {}  # the first trained parameter of each group, where its backward ends
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            ends.setdefault(group_label(model, name), parameter)
    for loss, reached in losses_of_passes(model, largest, losses, leaves):
        if loss.requires_grad:
            torch.autograd.grad(loss, [*ends.values(), *reached], allow_unused=True)


def losses_of_passes(
    model: UnifiedModel, largest: dict[str, PassInputs], losses: Sequence[Tensor], leaves: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
    """For each pass the root of its backward, and the leaves it must reach; `losses` and `leaves` belong to the last, as in a
    micro-step. The backward of a pass comes before the forward of the next."""
    *_, last = largest
    for name, inputs in largest.items():
        loss = loss_of(model(inputs))
        yield (torch.stack([*losses, loss]).sum(), leaves) if name == last else (loss, ())


def loss_of(output: PassOutput) -> Tensor:
    """() root of the backward of a pass: the losses of all rows, and the measured attention."""
    loss = output.loss_sum.sum()
    return loss if output.attention is None else loss + output.attention.keys.sum()


def uncovered_bytes(model: UnifiedModel, ds_config: dict[str, Any], world_size: int) -> int:
    """Most temporary bytes of a step on the GPU of each rank that the dry run did not take.

    The largest weight gradient whole, its copy in the dtype of the reduction and this rank's part of the sum; a bucket of
    gradients waiting for reduction (two if it overlaps with the backward), with their copies; and the float32 gradient of the
    slice updated at a time. Bytes that stay are `late_state_bytes`.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    zero = ds_config["zero_optimization"]
    reduced = 2 if ds_config["communication_data_type"] == "bf16" else 4
    largest = max(trained, key=element_count)
    elements = sum(map(element_count, trained))
    alone = element_count(largest) * (largest.element_size() + reduced) + element_count(largest) * reduced // world_size
    buckets = 2 if zero.get("overlap_comm", zero["stage"] == 3) else 1  # deepspeed's own default
    waiting = buckets * min(zero.get("reduce_bucket_size", elements), elements) * (largest.element_size() + reduced)
    on_host = "offload_optimizer" in zero
    updated = 0 if on_host else 4 * min(zero.get("sub_group_size", elements), -(-elements // world_size))
    return alone + waiting + updated


def late_state_bytes(learner: Learner, ds_config: dict[str, Any]) -> int:
    """Bytes that the first update of a fresh run allocates on the GPU of each rank, and keeps.

    AdamW's moments, unless they were loaded, and the summed gradients of ZeRO-2. Master weights exist before.
    """
    zero = ds_config["zero_optimization"]
    if "offload_optimizer" in zero:
        return 0
    elements = sum(element_count(p) for p in learner.module.parameters() if p.requires_grad)
    of_rank = -(-elements // learner.world.size)
    gradients = 4 * of_rank if zero["stage"] == 2 else 0
    return max(0, 8 * of_rank - learner.moment_bytes()) + gradients


@contextlib.contextmanager
def checked_peak(learner: Learner, ds_config: dict[str, Any]) -> Iterator[None]:
    """Collective, around a dry run on GPUs: raises CapacityError on every rank when a step would not fit on one of them.

    Peaks and GPUs differ between ranks. Memory held by other libraries and processes is not free.
    """
    device, world = learner.world.device, learner.world
    if device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(device)
    yield
    free, _ = torch.cuda.mem_get_info(device)
    capacity = free + torch.cuda.memory_reserved(device)
    uncovered = uncovered_bytes(learner.module, ds_config, world.size) + late_state_bytes(learner, ds_config)
    peak = torch.cuda.max_memory_allocated(device)
    tight = max(world.all_gather_object((peak + uncovered - capacity, peak, uncovered, capacity)))
    check_peak(*tight[1:])


def check_peak(peak: int, uncovered: int, capacity: int) -> None:
    """Raise CapacityError when `peak` of the dry run and the `uncovered` bytes exceed the capacity of the device."""
    if peak + uncovered > capacity:
        raise CapacityError(
            f"The largest step does not fit: the dry run took {peak / GIB:.1f} GiB and gradients and update take up to "
            f"{uncovered / GIB:.1f} GiB more, but only {capacity / GIB:.1f} GiB of the GPU are free. Type "
            "model.gradient_checkpointing=true, fewer rows in the objectives with a larger batch.accumulation, a smaller "
            "model.max_length, or more ranks; megaunigame plan RECIPE shows what takes the memory."
        )
