"""Memory of GPUs and hosts; refuses runs whose weights cannot fit, before anything is loaded."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch

from megaunigame.config import Recipe
from megaunigame.engine.element_bytes import WEIGHT
from megaunigame.errors import CapacityError
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.ranks import Ranks
from megaunigame.step.requests import StepPlan

log = logging.getLogger(__name__)
GIB = 2**30
LARGE = 10e9
"""Elements above which ZeRO-2 is warned of."""
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Memory:
    """Bytes available to the weights of a run."""

    host: int
    """On this machine, for all its ranks together."""
    device: int
    """On the GPU of one rank; on a CPU, its share of the host."""
    ranks: int
    """Ranks on this machine."""


def memory_of(world: Ranks) -> Memory:
    """Collective: memory of this rank's machine."""
    here = socket.gethostname()
    ranks = world.all_gather_object(here).count(here)
    host = host_bytes()
    on_gpu = world.device.type == "cuda"
    return Memory(host, torch.cuda.get_device_properties(world.device).total_memory if on_gpu else host // ranks, ranks)


def host_bytes() -> int:
    """Physical memory of this machine, or the limit of its container."""
    limits = [file.read_text().strip() for file in CONTAINER_LIMITS if file.is_file()]
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(int(limit) for limit in limits if limit.isdecimal())])


def check_capacity(model: UnifiedModel, recipe: Recipe, plan: StepPlan, *, stage: int, world_size: int, memory: Memory) -> None:
    """Raise CapacityError for weights that this machine cannot hold. `model` may be on the meta device."""
    elements = sum(parameter.numel() for parameter in model.parameters())
    if stage == 2 and 4 * elements * memory.ranks > memory.host:
        raise CapacityError(
            f"engine.ds_config={recipe.engine.ds_config} is ZeRO-2, under which every rank builds the whole model in float32 "
            f"on its host: {memory.ranks} ranks x {4 * elements / GIB:.1f} GiB on this machine, which has "
            f"{memory.host / GIB:.1f} GiB. Type engine.ds_config=ds_configs/zero3.json."
        )
    if stage == 3 and len(plan.passes) > 1 and not recipe.model.gradient_checkpointing:
        weight = WEIGHT[recipe.engine.precision]
        whole, slices = weight * elements, weight * elements // world_size
        if whole + slices > memory.device:
            raise CapacityError(
                f"Without gradient checkpointing, a micro-step of {len(plan.passes)} passes leaves the model whole on every "
                f"rank until its backward is done: {whole / GIB:.1f} GiB plus a slice of {slices / GIB:.1f} GiB, but a "
                f"rank has {memory.device / GIB:.1f} GiB. Type model.gradient_checkpointing=true."
            )


def check_everywhere(model: UnifiedModel, recipe: Recipe, plan: StepPlan, *, stage: int, world: Ranks) -> None:
    """Collective: `check_capacity` on every rank; a CapacityError on one rank is raised on all."""
    elements = sum(parameter.numel() for parameter in model.parameters())
    if stage == 2 and elements > LARGE and world.is_main:
        log.warning(
            "%s is ZeRO-2 for %.1f billion parameters: every rank reads all of them, and has them whole in float32 on its host "
            "while it loads. engine.ds_config=ds_configs/zero3_30b.json reads each once.",
            *(recipe.engine.ds_config, elements / 1e9),
        )
    problem = None
    try:
        check_capacity(model, recipe, plan, stage=stage, world_size=world.size, memory=memory_of(world))
    except CapacityError as error:
        problem = str(error)
    problems = [found for found in world.all_gather_object(problem) if found is not None]
    if problems:
        raise CapacityError(problems[0])
