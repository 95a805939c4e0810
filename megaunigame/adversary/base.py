"""Interface of adversaries: from visual tokens to a perturbation of bounded length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megaunigame.settings import above, one_of

BUDGETS = ("absolute", "relative")


@dataclass
class Budget:
    """How far a visual token may be moved; settings of every adversary."""

    eps_max: float = above(0, 0.02)
    """Largest length of a token's perturbation."""
    budget: str = one_of(BUDGETS, "absolute")
    """`absolute`: eps is an L2 length (the paper's); `relative`: it is a fraction of the token's own length."""


class Adversary(nn.Module, ABC):
    """One file in this folder, found by module name (`adversary: {kind: perturber}`).

    Small, replicated on every rank, fp32; it stays outside the training engine. All of its randomness comes from the
    generator it is given, so that ranks and restarts agree.
    """

    Config: ClassVar[type[Any]]
    """Dataclass of the settings, a subclass of `Budget`."""
    ascends: ClassVar[bool] = False
    """Whether `perturb` takes the gradient of what `ascend` returns."""

    adjustable: ClassVar[tuple[str, ...]] = ("eps_max",)
    """Settings that a resumed run may change; the others give its parameters their meaning."""

    def __init__(self, config: Any, width: int):
        """`width`: D of the tokens. Parameters come from torch's global generator: seed it, so that all ranks start alike."""
        super().__init__()
        self.config = config
        self.held: float | None = None
        """The length that every perturbation has, set from outside; None: the adversary's own."""

    @abstractmethod
    def perturb(self, tokens: Tensor, ascend: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
        """Visual tokens (B, N, D) float32 -> perturbation (B, N, D) float32, within the budget.

        `ascend` maps a perturbation to the loss of every row (B,), differentiable. Each call is one pass through the
        learner, so the number of calls must not depend on the data.
        """

    @property
    def lowest(self) -> float:
        """Smallest length that the settings allow."""
        return 0.0

    @property
    def limit(self) -> float:
        """Largest length of a token's perturbation now, in units of the budget."""
        return self.config.eps_max if self.held is None else self.held

    @property
    def eps(self) -> Tensor:
        """(1,): current length of a perturbation, in units of the budget."""
        return torch.tensor([self.limit])

    @property
    def opening(self) -> Tensor:
        """(1,) or (): how far an own gate on the length is open, in [0, 1]; 1 without one."""
        return torch.ones(())

    @property
    def learns(self) -> bool:
        """Whether it has parameters to train."""
        return next(self.parameters(), None) is not None

    def scaled(self, direction: Tensor, tokens: Tensor, eps: Tensor | float) -> Tensor:
        """Any (B, N, D) -> the same directions with length eps (`absolute`) or eps times that of the token (`relative`)."""
        length = tokens.norm(dim=-1, keepdim=True) if self.config.budget == "relative" else 1.0
        return eps * F.normalize(direction, dim=-1, eps=1e-12) * length
