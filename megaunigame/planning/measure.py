"""A micro-step of the real model on the meta device: bytes alive and operations, pass by pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch.utils.flop_counter import FlopCounterMode

from megaunigame.engine.live_bytes import LiveBytes
from megaunigame.models.base import UnifiedModel
from megaunigame.passes import PassInputs
from megaunigame.planning.flops import PassFlops, loss_of, run_backward
from megaunigame.planning.fused_attention import fused_attention


@dataclass(frozen=True)
class MicroStep:
    """Forward of all passes, then one backward through all of them, on the largest legal rows of one rank."""

    kept: dict[str, int]
    """Pass -> bytes that its graph holds until the backward."""
    peak: int
    """Most bytes alive at once: the graphs of all passes, what the backward makes, and weight gradients that wait for the
    other passes. Weights and inputs are not in it."""
    flops: dict[str, PassFlops]

    @property
    def backward(self) -> int:
        """Bytes at the peak beyond the graphs of all passes."""
        return self.peak - sum(self.kept.values())


def measure(model: UnifiedModel, largest: dict[str, PassInputs]) -> MicroStep:
    """`model`: of `meta_model`, with what is trained chosen. `largest`: inputs on the meta device."""
    kept: dict[str, int] = {}
    forwards: dict[str, int] = {}
    losses = {}
    with fused_attention(), LiveBytes() as live:
        for name, inputs in largest.items():
            before = live.current
            with FlopCounterMode(display=False) as counter:
                losses[name] = loss_of(model(name, inputs))
            kept[name], forwards[name] = live.current - before, counter.get_total_flops()
        run_backward(model, sum(losses.values()))
    return MicroStep(kept, live.peak, {name: PassFlops(forwards[name], 0) for name in largest})
