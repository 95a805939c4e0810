"""How many codes the attacks flip: a warning when they flip none, and a controller that sets eps by it.

    eps <- eps * (wanted share / found share)^rate        within [eps_min, eps_max] of the adversary

A budget in units of length means another attack on every model; a share of flipped codes means the same on all.
"""

from __future__ import annotations

import logging
from typing import Any

from megaunigame.adversary.base import Adversary
from megaunigame.objectives.unigame.settings import ControllerSettings

log = logging.getLogger(__name__)

FEW, PATIENCE = 1e-3, 20
"""A share of changed codes below which an attack is hardly one, and consecutive attacks before a warning."""
SMALLEST = 1e-4
"""Lower limit of a controlled eps, in units of eps_max, where the adversary has none: from 0 nothing leads back."""
LARGEST_QUOTIENT = 10.0


class Reach:
    """State that is equal on all ranks: it follows from sums over all ranks."""

    def __init__(self, settings: ControllerSettings | None, adversary: Adversary, watched: bool):
        """`watched`: whether attacks flip codes that can be counted."""
        self.settings, self.adversary, self.watched = settings, adversary, watched
        self.quiet = 0
        """Consecutive attacks that changed fewer than `FEW` of the codes."""
        if settings is not None:
            adversary.held = float(adversary.eps.detach())

    def note(self, changed: float, *, is_main: bool) -> None:
        """After a step with attacks that changed this share of the codes, a mean over the attacked pictures of all ranks."""
        if self.watched:
            self.quiet = self.quiet + 1 if changed < FEW else 0
            if self.quiet and self.quiet % PATIENCE == 0 and is_main:
                log.warning(
                    "The last %d attacks changed fewer than %g of the codes: the learner sees the pictures of its tokenizer. "
                    "Raise objectives.unigame.adversary.eps_max, or begin another run with "
                    "objectives.unigame.adversary.budget=relative.",
                    self.quiet,
                    FEW,
                )
        if self.settings is not None:
            self._control(self.settings, changed)

    def _control(self, settings: ControllerSettings, changed: float) -> None:
        quotient = settings.flipped / max(changed, settings.flipped / LARGEST_QUOTIENT)
        wanted = self.adversary.limit * max(quotient, 1 / LARGEST_QUOTIENT) ** settings.rate
        self.adversary.held = self._within(wanted)

    def _within(self, eps: float) -> float:
        """The nearest length within the limits of the adversary."""
        most = self.adversary.config.eps_max
        return min(max(eps, self.adversary.lowest, SMALLEST * most), most)

    def state_dict(self) -> dict[str, Any]:
        """As JSON values, exact."""
        return {"quiet": self.quiet, "eps": self.adversary.held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """A run that had no controller leaves eps where this run starts it."""
        self.quiet = state["quiet"]
        if self.settings is not None and state["eps"] is not None:
            self.adversary.held = self._within(state["eps"])  # the limits may be other ones now
