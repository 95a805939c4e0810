"""Bytes of weights, gradients and optimizer of one rank, on its GPU and in host memory, from counts of elements."""

from __future__ import annotations

from megaunigame.engine.element_bytes import GRADIENT, WEIGHT, optimizer_bytes
from megaunigame.planning.rehearsal import Shape
from megaunigame.planning.workload import Workload

WEIGHTS, GRADIENTS, STATES = "weights", "gradients", "optimizer"
COPIES = "second copy of the weights (hpZ)"
SAVED = "a checkpoint that is being written"


def states(work: Workload, shape: Shape) -> tuple[dict[str, int], dict[str, int]]:
    """On the GPU, and on the host if the ds_config offloads."""
    zero = work.ds_config["zero_optimization"]
    weight = WEIGHT[work.recipe.engine.precision]
    slices = work.ranks if work.stage == 3 else 1
    trained = sum(-(-elements // work.ranks) for elements, is_trained in shape.parameters if is_trained)
    sizes = {
        WEIGHTS: weight * sum(-(-elements // slices) for elements, _ in shape.parameters),
        GRADIENTS: GRADIENT * trained,
        STATES: optimizer_bytes(averaged=bool(work.recipe.ema.decay)) * trained,
    }
    threshold = zero.get("stage3_param_persistence_threshold", 0) if slices > 1 else 0
    whole = weight * sum(elements for elements, _ in shape.parameters if elements <= threshold)
    group = hpz_group(work)
    second = weight * sum(-(-elements // group) for elements, _ in shape.parameters) if group > 1 else 0
    offloaded = {WEIGHTS} if "offload_param" in zero else set()
    offloaded |= {GRADIENTS, STATES} if "offload_optimizer" in zero else set()
    on_gpu = {name: size for name, size in sizes.items() if name not in offloaded}
    on_host = {name: size for name, size in sizes.items() if name in offloaded}
    return on_gpu | {"weights that stay whole": whole, COPIES: second}, on_host


def saved(work: Workload, shape: Shape) -> dict[str, int]:
    """On the host, while the copies of a save are written: masters, moments, averages, and what players keep there."""
    trained = sum(-(-elements // work.ranks) for elements, is_trained in shape.parameters if is_trained)
    return {SAVED: optimizer_bytes(averaged=bool(work.recipe.ema.decay)) * trained + sum(shape.host.values())}


def hpz_group(work: Workload) -> int:
    """Ranks that together hold a second copy of the weights, from which backwards gather; 1: no copy."""
    group = work.ds_config["zero_optimization"].get("zero_hpz_partition_size", 1)
    return group if work.stage == 3 and work.ranks > 1 else 1
