"""Floating-point operations that a step takes, counted while it runs.

Counted are products of matrices, convolutions and attention (in full, also where it is causal), forward and backward, of all
passes of a step, of frozen tokenizers and of players. So a frozen matrix under LoRA counts 4 operations per element and
token, a trained one 6. What gradient checkpointing computes a second time is counted apart: it is work, but not the model's.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import _checkpoint_hook, _recomputation_hook
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from megaunigame.parallel.world import World

FORMULAS = {
    **flop_registry,
    # The CPU's own kernel of attention, which torch does not list.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}
WATCHES = (_checkpoint_hook.__qualname__, _recomputation_hook.__qualname__)
"""Beginnings of the names of what gradient checkpointing calls when a tensor is saved, the first and the second time."""


class CountFlops(TorchDispatchMode):
    """Counts what is computed inside the block, on this process.

    Keeps no tensor alive; torch's FlopCounterMode does, by hooks on modules, so no memory can be measured next to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        """Of the model."""
        self.recomputed = 0
        """Spent on computing a second time what gradient checkpointing had dropped."""
        self.in_fp32 = 0
        """Of all that was computed, with a first factor in float32."""

    @property
    def total(self) -> int:
        """All that was computed."""
        return self.flops + self.recomputed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(func.overloadpacket)
        if formula is not None:
            counted = formula(*args, **(kwargs or {}), out_val=result)
            if _recomputing():
                self.recomputed += counted
            else:
                self.flops += counted
            if args[0].dtype == torch.float32:
                self.in_fp32 += counted
        return result


def _recomputing() -> bool:
    """Whether gradient checkpointing computes a second time just now: within a backward it watches what is saved for one.

    Recomputed blocks may be checkpointed themselves: then the watch of the inner block is on top. Whether gradients are enabled
    does not tell: under ZeRO-3, linear layers are functions that compute without them.
    """
    if torch._C._current_graph_task_id() == -1:
        return False
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and hooks[0].__qualname__.startswith(WATCHES)


class ModelFlops:
    """Operations of a step of a run: those of its first step are counted, the others follow from their tokens.

    That is exact where rows have one length; where they vary, the part of attention that grows with the square of the length
    is an average.
    """

    def __init__(self, world: World, wanted: bool):
        """`wanted`: whether to count at all; the counted step is slower."""
        self.world, self.wanted = world, wanted
        self._count: CountFlops | None = None
        self._per_token: float | None = None

    def counting(self) -> AbstractContextManager[Any]:
        """Goes around each step; counts in the first."""
        if not self.wanted or self._count is not None:
            return contextlib.nullcontext()
        self._count = CountFlops()
        return self._count

    def of(self, tokens: float) -> float | None:
        """Operations of all ranks in a step of `tokens` on all ranks; None: not counted. Collective in the counted step."""
        if self._count is None:
            return None
        if self._per_token is None:
            flops = torch.tensor([float(self._count.flops)], dtype=torch.float64, device=self.world.device)
            self._per_token = self.world.all_reduce_sum(flops).item() / tokens
        return self._per_token * tokens
