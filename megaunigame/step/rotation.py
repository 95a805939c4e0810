"""Rotation: which loss terms take part in which micro-step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUND_ROBIN, SAMPLED = "round_robin", "sampled"


@dataclass(frozen=True)
class Rotation:
    """One of `terms` takes part in each micro-step, the others rest: a pure function of (seed, micro-step)."""

    terms: tuple[str, ...]
    order: str
    """`round_robin`: in the order given; `sampled`: uniformly at random in every micro-step."""

    def resting(self, micro_step: int, seed: int) -> frozenset[str]:
        """The terms without rows in a micro-step (counted from the first of the whole run)."""
        if self.order == ROUND_ROBIN:
            active = micro_step % len(self.terms)
        else:
            active = int(np.random.default_rng([seed, micro_step, 0x7075]).integers(len(self.terms)))
        return frozenset(self.terms) - {self.terms[active]}
