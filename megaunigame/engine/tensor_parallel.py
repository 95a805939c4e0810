"""Tensor parallelism for drawing: a few ranks divide the layers of one model, and compute the same rows together.

Gathering the weights for every token that is drawn takes far longer than computing it, and a large model fits whole on no
device. Inside `divided_weights` each of N ranks has a part of every layer of the language model: some heads of the attention,
some units of the feed-forward network (Megatron-LM, arXiv 1909.08053, section 3). All other weights are whole. A sum over the
N ranks completes what an attention or a feed-forward network puts out: two messages of the size of the hidden states for a
layer, and no weights.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from megaunigame.engine.whole_weights import drop_whole, free_bytes, gather, whole_bytes
from megaunigame.engine.zero3 import Learner
from megaunigame.errors import Interrupted
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.ranks import Ranks

OUTPUTS, INPUTS = 0, 1
"""Dimension of a weight (outputs, inputs) that is divided."""
DIVIDED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "fc1"), OUTPUTS),
    **dict.fromkeys(("o_proj", "dense", "down_proj", "fc2"), INPUTS),
}
"""Name of a linear layer, in the decoder layers of transformers -> what of it is divided."""

ROWS, WARM_UP, TIMED = 32, 3, 20
"""Of sums that are timed: rows of a batch, sums before, sums."""


class Part(NamedTuple):
    """What a rank keeps of one weight."""

    parameter: Any
    dim: int | None
    """None: a bias that is added to a sum over the ranks. The first rank keeps it whole, and the others have zeros."""
    units: int
    """Equal parts along `dim` that stay together: heads, or single features."""


def why_whole(model: UnifiedModel) -> str:
    """Why the weights of this model cannot be divided; empty: they can."""
    if not model.layers():
        return "the layers of its language model are not named"
    for layer in model.layers():
        found = {id(part) for _, _, module in _divided(layer) for part in module.modules()}
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear) and id(module) not in found:
                return f"its layers have a linear layer {name}, which nobody has said how to divide"
            if getattr(module, "lora_magnitude_vector", None):
                return "DoRA measures whole rows of its weights"
            if hasattr(module, "q_proj") and (hasattr(module, "num_heads") or not hasattr(module, "head_dim")):
                return f"{type(module).__name__} computes with a fixed number of heads"
    return ""


def legal_parts(model: UnifiedModel, ranks: int) -> list[int]:
    """Numbers of parts above 1, ascending, that divide heads, features and `ranks`. For a model that `why_whole` allows."""
    common = math.gcd(ranks, *(each.units for each in parts(model) if each.dim is not None))
    return [number for number in range(2, common + 1) if common % number == 0]


def parts(model: UnifiedModel) -> list[Part]:
    """Of all weights that are divided."""
    return [each for layer in model.layers() for name, parent, module in _divided(layer) for each in _of(name, parent, module)]


def _divided(layer: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """(name, module around it, linear layer or the adapter around one)."""
    for parent in layer.modules():
        for name, module in parent.named_children():
            if name in DIVIDED:
                yield name, parent, module


def _of(name: str, parent: nn.Module, module: nn.Module) -> Iterator[Part]:
    dim = DIVIDED[name]
    base: Any = getattr(module, "base_layer", module)
    width = int(getattr(parent, "head_dim", 1)) if hasattr(parent, "q_proj") else 1
    units = _shape(base.weight)[dim] // width
    yield Part(base.weight, dim, units)
    if base.bias is not None:
        yield Part(base.bias, OUTPUTS if dim == OUTPUTS else None, units)
    # An adapter B A: the outputs of W are those of B, and its inputs those of A.
    adapters: Any = getattr(module, "lora_B" if dim == OUTPUTS else "lora_A", {})
    for adapter in adapters.values():
        yield Part(adapter.weight, dim, units)


def _shape(parameter: Any) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def divided_bytes(learner: Learner, number: int) -> int:
    """Bytes that a rank holds of so many parts."""
    divided = {id(each.parameter) for each in parts(learner.module) if each.dim is not None}
    return sum(
        p.ds_numel * p.element_size() // (number if id(p) in divided else 1)  # type: ignore[attr-defined]
        for p in learner.module.parameters()
    )


def fits_divided(learner: Learner, number: int, share: float) -> bool:
    """Collective: whether a part of so many takes at most `share` of the memory that is free on the device of every rank."""
    free = free_bytes(learner)
    return not learner.world.any(divided_bytes(learner, number) > share * free)


def sum_seconds(learner: Learner, sharers: Ranks) -> float:
    """Collective: seconds of the sums of one call that reads a token in each of `ROWS` rows, on the slowest rank."""
    hidden = torch.zeros(
        ROWS, 1, learner.module.token_width, dtype=next(learner.module.parameters()).dtype, device=sharers.device
    )
    began = 0.0
    for number in range(WARM_UP + TIMED):
        if number == WARM_UP:
            _wait_for(sharers)
            began = time.perf_counter()
        sharers.all_reduce_sum(hidden)
    _wait_for(sharers)
    seconds = torch.tensor([(time.perf_counter() - began) / TIMED], dtype=torch.float64)
    return learner.world.all_reduce_max(seconds).item() * 2 * len(learner.module.layers())


def _wait_for(sharers: Ranks) -> None:
    if sharers.device.type == "cuda":
        torch.cuda.synchronize(sharers.device)


@contextlib.contextmanager
def divided_weights(learner: Learner, sharers: Ranks) -> Iterator[None]:
    """Collective: the ranks of `sharers` compute the same rows together inside, without gradients. All sets of ranks do so at
    the same time. Nothing may be trained, saved or loaded, and no attention measured: a rank has some heads only.

    Only under ZeRO-3. Errors: as `whole_weights`.
    """
    plans = learner.gather_plans
    assert plans is not None, "ZeRO-2 has whole weights"
    offload = plans.offload
    offload.partition_all_parameters()
    kept: list[Part] = []
    hooks: list[Any] = []
    learner.gathered.total += whole_bytes(learner)
    try:
        with plans.resting():
            for layer in learner.module.layers():
                kept += _keep_parts(layer, sharers)
            divided = {id(each.parameter) for each in kept}
            gather([p for p in learner.module.parameters() if id(p) not in divided])
            hooks += add_sums(learner.module, sharers)
            yield
    except Interrupted:
        _drop(kept, hooks)
        drop_whole(offload)
        raise
    except BaseException:
        _drop(kept, hooks)
        offload.partition_all_parameters()
        raise
    _drop(kept, hooks)
    drop_whole(offload)


@torch.no_grad()
def _keep_parts(layer: nn.Module, sharers: Ranks) -> list[Part]:
    """Collective: gather the weights of a layer and keep this rank's parts; the rest of the layer is released again."""
    of_layer = [each for name, parent, module in _divided(layer) for each in _of(name, parent, module)]
    whole = [each.parameter for each in of_layer]
    gather(whole)
    parts = [own_part(each, sharers) for each in of_layer]
    whole[0].partition(param_list=whole)
    for each, part in zip(of_layer, parts, strict=True):
        each.parameter.data = part
    return of_layer


def own_part(piece: Part, sharers: Ranks) -> Tensor:
    """What this rank keeps of a whole weight."""
    whole = piece.parameter.data
    if piece.dim is None:
        return whole.clone() if sharers.rank == 0 else torch.zeros_like(whole)
    return whole.chunk(sharers.size, piece.dim)[sharers.rank].clone(memory_format=torch.contiguous_format)


def _drop(kept: list[Part], hooks: list[Any]) -> None:
    for hook in hooks:
        hook.remove()
    for each in kept:
        each.parameter.data = each.parameter.data.new_empty(0)


def add_sums(model: UnifiedModel, sharers: Ranks) -> list[Any]:
    """Hooks that make the sums over the ranks, to be removed by the caller.

    What the first layer reads is that of the first rank: if the others round differently and draw another token, their rows
    still are its rows.
    """

    def of_first(layer: nn.Module, args: tuple) -> tuple:
        hidden, *others = args
        return sharers.first(hidden.clone(memory_format=torch.contiguous_format)), *others

    def summed(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return sharers.all_reduce_sum(output.contiguous())

    hooks = [model.layers()[0].register_forward_pre_hook(of_first)]
    for layer in model.layers():
        hooks += [module.register_forward_hook(summed) for name, _, module in _divided(layer) if DIVIDED[name] == INPUTS]
    return hooks
