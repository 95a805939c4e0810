"""An exponential moving average of the fp32 master weights. Each rank averages the slices that it owns: nothing is gathered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megaunigame.config import EmaConfig


class Ema:
    """average = decay x average + (1 - decay) x master, every so many optimizer steps."""

    def __init__(self, masters: Sequence[Tensor], config: EmaConfig):
        """`masters`: flat tensors of this rank; their averages begin with their values, on their devices."""
        self.masters, self.config = masters, config
        self.averages = [master.detach().clone() for master in masters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step` (1 is the first). A refused update has left the masters, and counts like any other."""
        if step % self.config.every == 0:
            for average, master in zip(self.averages, self.masters, strict=True):
                average.lerp_(master, 1 - self.config.decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin with the masters as they are now."""
        for average, master in zip(self.averages, self.masters, strict=True):
            average.copy_(master)

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the averages into the place of the masters, and these into theirs. Takes the memory of one flat tensor."""
        for average, master in zip(self.averages, self.masters, strict=True):
            kept = master.detach().clone()
            master.copy_(average)
            average.copy_(kept)
