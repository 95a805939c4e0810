"""Floating-point operations of a rehearsed pass: every matrix product and convolution of the real modules.

A product of (m, k) and (k, n) is 2 m k n operations. Attention counts all pairs of a query and a key, also under a causal
mask. The backward is what autograd computes: with adapters, without weight gradients of frozen matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from megaunigame.engine.model_flops import CountFlops
from megaunigame.engine.parameters import element_count
from megaunigame.models.base import UnifiedModel


@dataclass(frozen=True)
class Operations:
    """Of one rank."""

    model: int = 0
    """Without recomputation, as MFU is defined."""
    again: int = 0
    """Recomputed by gradient checkpointing, of layers and of frozen tokenizers."""
    in_fp32: int = 0
    """Of both, those in float32: frozen tokenizers, adversaries, or all."""

    @classmethod
    def of(cls, counter: CountFlops) -> Operations:
        return cls(counter.flops, counter.recomputed, counter.in_fp32)

    @property
    def total(self) -> int:
        return self.model + self.again

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.model + other.model, self.again + other.again, self.in_fp32 + other.in_fp32)

    def times(self, factor: float) -> Operations:
        return Operations(int(self.model * factor), int(self.again * factor), int(self.in_fp32 * factor))

    def seconds(self, bf16: float, fp32: float) -> float:
        """On a device that makes `bf16` operations per second in 16 bits, and `fp32` in 32."""
        return (self.total - self.in_fp32) / bf16 + self.in_fp32 / fp32


def run_backward(model: UnifiedModel, loss: Tensor) -> int:
    """Backward from `loss`, if anything in it is trained; every gradient is dropped once complete, as ZeRO does after its
    reduction. Returns the number of their elements."""
    reduced = 0

    def drop(parameter: Any) -> None:
        nonlocal reduced
        reduced += element_count(parameter)
        parameter.grad = None

    if loss.requires_grad:
        hooks = [p.register_post_accumulate_grad_hook(drop) for p in model.parameters() if p.requires_grad]
        loss.backward()
        for hook in hooks:
            hook.remove()
    return reduced
