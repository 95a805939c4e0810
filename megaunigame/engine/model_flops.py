"""Floating-point operations of a step, counted while it runs.

Counts matrix products, convolutions and attention (all pairs, also under a causal mask), forward and backward, of all passes
of a step, of frozen tokenizers and of players. So a frozen matrix under LoRA counts 4 operations per element and token, a
trained one 6. Recomputation of gradient checkpointing is counted separately: it is not part of the model's FLOPs.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import _checkpoint_hook, _recomputation_hook
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from megaunigame.parallel.ranks import Ranks

FORMULAS = {
    **flop_registry,
    # The CPU kernel of attention, which torch does not list.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}
WATCHES = (_checkpoint_hook.__qualname__, _recomputation_hook.__qualname__)
"""Name prefixes of the saved-tensor hooks of gradient checkpointing: in the forward and in the recomputation."""


class CountFlops(TorchDispatchMode):
    """Counts what this process computes inside the block.

    Keeps no tensor alive, unlike torch's FlopCounterMode, so memory can be measured at the same time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        """Of the model."""
        self.recomputed = 0
        """Of the recomputation of gradient checkpointing."""
        self.in_fp32 = 0
        """Of all operations, those whose first factor is float32."""

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
    """Whether gradient checkpointing recomputes now: inside a backward, its saved-tensor hook is on top.

    Recomputed blocks may be checkpointed themselves: then the hook of the inner block is on top. Whether gradients are enabled
    says nothing: under ZeRO-3, linear layers are functions that compute without them.
    """
    if torch._C._current_graph_task_id() == -1:
        return False
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and hooks[0].__qualname__.startswith(WATCHES)


class ModelFlops:
    """Operations of a step: counted in the first step, scaled by tokens in the others.

    Exact if all rows have one length; otherwise the part of attention that is quadratic in the length is an average.
    """

    def __init__(self, world: Ranks, wanted: bool):
        """`wanted`: whether to count at all; the counted step is slower."""
        self.world, self.wanted = world, wanted
        self._count: CountFlops | None = None
        self._per_token: float | None = None

    def counting(self) -> AbstractContextManager[Any]:
        """Context for each step; counts in the first."""
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
