"""A random direction of the full length: the baseline that does not use the model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megaunigame.adversary.base import Adversary, Budget


class Noise(Adversary):
    """delta = eps * u / ||u||, u normal."""

    Config = Budget

    def perturb(self, tokens: Tensor, ascend: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
        direction = torch.randn(tokens.shape, generator=generator, device=generator.device).to(tokens.device, non_blocking=True)
        return self.scaled(direction, tokens, self.limit)
