"""Weights that stay whole for many calls: an evaluation then gathers them once instead of once in each call.

Drawing a picture token by token calls the language model hundreds of times, and ZeRO-3 gathers its weights in each of them.
Inside `whole_weights` they are whole on every rank, and modules neither gather nor release nor record anything, so the gather
plans of the next training step are what they were. At the end the whole copies are dropped, not taken over: the slices of the
ranks are the weights, before and after.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

from megaunigame.engine.capacity import memory_of
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import Interrupted
from megaunigame.parallel.ranks import Ranks

TIMED_BYTES = 2**30
"""Of weights, at most, whose gather is timed: a few layers of a large model."""


@contextlib.contextmanager
def whole_weights(learner: Learner) -> Iterator[None]:
    """Collective: all weights are whole on every rank inside, where nothing may be trained, saved or loaded.

    Changes nothing under ZeRO-2, whose weights always are. An error of one rank, which ends the run, drops the whole weights
    without a collective; `Interrupted`, of all ranks together, leaves everything as it was.
    """
    plans = learner.gather_plans
    if plans is None:
        yield
        return
    offload = plans.offload
    offload.partition_all_parameters()  # also waits for those that were gathered ahead
    gather(list(learner.module.parameters()))
    learner.gathered.total += whole_bytes(learner)  # by another function of deepspeed than those that are counted
    try:
        with plans.resting():
            yield
    except Interrupted:
        drop_whole(offload)
        raise
    except BaseException:
        offload.partition_all_parameters()
        raise
    drop_whole(offload)


def drop_whole(offload: Any) -> None:
    """Collective: release all weights but those that the engine keeps whole, as after an update."""
    offload.partition_all_parameters()
    gather(offload.persistent_parameters)


def gather(parameters: Sequence[Any]) -> None:
    """Collective: make partitioned weights whole on every rank. The engine is not told."""
    if parameters:
        parameters[0].all_gather(list(parameters))


def whole_bytes(learner: Learner) -> int:
    """Bytes of all weights, in the dtype in which they are gathered; 0: they are whole anyway."""
    if learner.gather_plans is None:
        return 0
    return sum(p.ds_numel * p.element_size() for p in learner.module.parameters())  # type: ignore[attr-defined]


def fits_whole(learner: Learner, share: float) -> bool:
    """Collective: whether whole weights take at most `share` of the memory that is free on the device of every rank, before the
    first step and after it."""
    free = free_bytes(learner)
    return not learner.world.any(whole_bytes(learner) > share * free)


def free_bytes(learner: Learner) -> int:
    """Collective: bytes on the device of this rank that nothing has taken, or will take at the first update."""
    return _free_now(learner.world) - _moments_to_come(learner)


def _moments_to_come(learner: Learner) -> int:
    """Bytes of AdamW's moments that the first update of a fresh run will take on the device of this rank."""
    here = learner.world.device.type
    masters = sum(master.nbytes for master in learner.masters if master.device.type == here)
    return max(0, 2 * masters - learner.moment_bytes())


def _free_now(world: Ranks) -> int:
    """Collective. On a CPU, the share of a rank in the memory of its machine."""
    memory = memory_of(world)
    if world.device.type != "cuda":
        return memory.device
    free, _ = torch.cuda.mem_get_info(world.device)
    return free + torch.cuda.memory_reserved(world.device) - torch.cuda.memory_allocated(world.device)


def gather_seconds(learner: Learner) -> float:
    """Collective: seconds in which the slowest rank gathers all weights once, as the passes do, from the time of the first
    gigabyte of them; 0 where nothing is gathered. With `zero_hpz_partition_size` passes gather second copies in their group of
    ranks."""
    if learner.gather_plans is None:
        return 0.0
    timed: list[Any] = []
    size = 0
    for parameter in learner.module.parameters():
        if parameter.ds_status == ZeroParamStatus.NOT_AVAILABLE and size < TIMED_BYTES:  # type: ignore[attr-defined]
            timed.append(parameter)
            size += parameter.ds_numel * parameter.element_size()  # type: ignore[attr-defined]
    if not timed:
        return 0.0
    seconds, counted = 0.0, learner.gathered.total
    gather(timed)
    timed[0].partition(param_list=timed)  # makes second copies where there are none yet
    for _ in range(2):  # the first opens connections and takes memory
        began = time.perf_counter()
        timed[0].all_gather_coalesced(timed).wait()
        if learner.world.device.type == "cuda":
            torch.cuda.synchronize(learner.world.device)
        seconds = time.perf_counter() - began
        timed[0].partition(param_list=timed)
    learner.gathered.total = counted
    slowest = learner.world.all_reduce_max(torch.tensor([seconds], dtype=torch.float64))
    return slowest.item() * whole_bytes(learner) / size
