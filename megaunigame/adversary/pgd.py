"""Projected gradient ascent (arXiv 1706.06083) on every token of every picture: strong, slow, without parameters.

delta <- P(delta + step * eps * g / ||g||),  g = gradient of the row's loss,  P: onto the ball of radius eps
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megaunigame.adversary.base import Adversary, Budget
from megaunigame.settings import above, at_least


class Pgd(Adversary):
    """Starts in a random direction at half the length; `steps` forwards and backwards through the learner."""

    ascends = True
    adjustable = ("eps_max", "steps", "step")

    @dataclass
    class Config(Budget):
        steps: int = at_least(1, 3)
        """Forwards and backwards through the learner per attack."""
        step: float = above(0, 0.5)
        """Length of a step, in units of eps."""

    def perturb(self, tokens: Tensor, ascend: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
        c, eps = self.config, self.limit
        radius = self.scaled(torch.ones_like(tokens), tokens, eps).norm(dim=-1, keepdim=True)
        direction = torch.randn(tokens.shape, generator=generator, device=generator.device).to(tokens.device, non_blocking=True)
        delta = self.scaled(direction, tokens, eps / 2)
        for _ in range(c.steps):
            with torch.enable_grad():
                delta.requires_grad_(True)
                (gradient,) = torch.autograd.grad(ascend(delta).sum(), delta)
            delta = delta.detach() + self.scaled(gradient, tokens, c.step * eps)
            length = delta.norm(dim=-1, keepdim=True)
            delta = delta * (radius / length.clamp_min(1e-12)).clamp_max(1.0)
        return delta
