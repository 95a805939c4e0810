"""Factors on the weights of loss terms, by step: schedules, and factors that equalize gradient norms.

L = sum over terms t of factor_t(step) * weight_t * mean loss of t
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from megaunigame.config import AUTO, WeightConfig
from megaunigame.errors import ConfigError
from megaunigame.monitoring import names
from megaunigame.registry import unknown

MEMORY = 0.5
"""Share of the previous factor that a new measurement keeps: single micro-steps are noise."""


class TermWeights:
    """The recipe's `weights`. A term that it does not name has factor 1."""

    def __init__(self, terms: Sequence[str], of_rows: Sequence[str], config: Mapping[str, WeightConfig]):
        """`terms`: all loss terms; `of_rows`: those with rows of the plan, whose gradients are measured.

        Raises ConfigError for a term that does not exist or whose gradient cannot be measured.
        """
        self.config = dict(config)
        for term, weight in config.items():
            if term not in terms:
                problem = unknown("loss term", term, list(terms))
                raise ConfigError(f"weights: {problem} A term without rows has no weight: leave it out, or type weights={{}}.")
            if weight.kind == AUTO:
                for name, key in ((term, f"weights.{term}.kind=auto"), (self.reference(term, of_rows), f"weights.{term}.like")):
                    if name not in of_rows:
                        raise ConfigError(f"{key}: {unknown('term with rows', name, list(of_rows))}")
        self.of_rows = tuple(of_rows)
        self.equalizing = {term: 1.0 for term, weight in self.config.items() if weight.kind == AUTO}
        """Term -> its factor as of the last measurement; part of the state of a run."""

    def reference(self, term: str, of_rows: Sequence[str]) -> str:
        """The term whose gradient norm `term` gets."""
        others = [name for name in of_rows if name not in self.config or self.config[name].kind != AUTO]
        return self.config[term].like or (others[0] if others else "")

    def factors(self, terms: Sequence[str], step: int) -> list[float]:
        """The factor of each term in optimizer step `step`, 0 is the first."""
        return [self._factor(term, step) for term in terms]

    def _factor(self, term: str, step: int) -> float:
        if term not in self.config:
            return 1.0
        return self.equalizing.get(term, 1.0) * scheduled(self.config[term], step)

    def equalize(self, norms: Mapping[str, float], weights: Mapping[str, float]) -> None:
        """Take new factors from gradient norms of the unweighted terms; `weights`: those of the objectives, without factors.

        A term that rests, has no rows or has no gradient keeps its factor. The first measurement holds as it is.
        """
        for term, before in self.equalizing.items():
            like = self.reference(term, self.of_rows)
            wanted = weights[like] * norms.get(like, 0.0)
            own = weights[term] * norms.get(term, 0.0)
            if wanted > 0 and own > 0 and math.isfinite(wanted / own):
                found = wanted / own
                # In the logarithm: factors of 1/100 and of 100 are equally far from 1.
                self.equalizing[term] = found if before == 1.0 else before**MEMORY * found ** (1 - MEMORY)

    def metrics(self, step: int) -> dict[str, float]:
        """The factors of the named terms."""
        return {names.weight(term): self._factor(term, step) for term in self.config}

    def state_dict(self) -> dict[str, float]:
        return dict(self.equalizing)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Terms that this recipe does not equalize are dropped."""
        self.equalizing |= {term: factor for term, factor in state.items() if term in self.equalizing}


def scheduled(weight: WeightConfig, step: int) -> float:
    """From `start` at step 0 to `end` at step `steps` and after it."""
    if step >= weight.steps:
        return weight.end
    done = step / weight.steps
    if weight.kind == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return weight.start + (weight.end - weight.start) * done
