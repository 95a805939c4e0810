"""Tasks in rotation: which loss terms take part in which micro-step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUND_ROBIN, SAMPLED = "round_robin", "sampled"


@dataclass(frozen=True)
class Rotation:
    """One of `terms` takes part in each micro-step, the others rest: a pure function of (seed, micro-step)."""

    terms: tuple[str, ...]
    order: str
    """`round_robin`: in the order given; `sampled`: drawn for every micro-step, all equally likely."""

    def resting(self, micro_step: int, seed: int) -> frozenset[str]:
        """The terms without rows in a micro-step, which is counted from the first one of the whole run."""
        if self.order == ROUND_ROBIN:
            turn = micro_step % len(self.terms)
        else:
            turn = int(np.random.default_rng([seed, micro_step, 0x7075]).integers(len(self.terms)))
        return frozenset(self.terms) - {self.terms[turn]}
