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
from megaunigame.step.requests import StepPlan

MEMORY = 0.5
"""Share of the previous factor that a new measurement keeps: single micro-steps are noise."""
LEAST, MOST = 1e-3, 10.0
"""Limits of a factor that equalizes: the gradient of a term that has been learned vanishes, and must not be amplified."""


class TermWeights:
    """The recipe's `weights`. A term that it does not name has factor 1."""

    def __init__(self, plan: StepPlan, added: Sequence[str], config: Mapping[str, WeightConfig]):
        """`added`: loss terms besides those of the plan. Raises ConfigError for a term that does not exist, and for one whose
        gradient is not measured in every step that measures: rows that a player fills, terms in rotation."""
        self.config = dict(config)
        for term in config:
            self.require(term, [*plan.terms, *added])
        rotating = {term for rotation in plan.rotations for term in rotation.terms}
        self.measurable = [r.term for r in plan.requests if not r.aside and r.stream is not None and r.term not in rotating]
        for term, weight in config.items():
            if weight.kind == AUTO:
                self._check_auto(term, plan, rotating)
        self.equalizing: dict[str, float] = {}
        """Term -> its factor as of the last measurement; part of the state of a run. Empty before the first."""

    def require(self, term: str, terms: Sequence[str]) -> None:
        """Raises ConfigError for a term that is not among `terms`."""
        if term not in terms:
            problem = unknown("loss term", term, list(terms))
            raise ConfigError(f"weights: {problem} A term without rows has no weight: type weights.{term}=null.")

    def _check_auto(self, term: str, plan: StepPlan, rotating: set[str]) -> None:
        for name, key in ((term, f"weights.{term}.kind=auto"), (self.reference(term), f"weights.{term}.like")):
            if name in rotating:
                raise ConfigError(
                    f"{key}: {name} takes turns with other tasks, so their gradients are not measured together. Type "
                    f"schedule=all in their objective, or give weights.{term} another kind."
                )
            if name not in self.measurable:
                raise ConfigError(f"{key}: {unknown('term with rows of a stream', name, self.measurable)}")
        like = self.reference(term)
        if self.config.get(like, WeightConfig()).kind == AUTO:
            raise ConfigError(f"weights.{term}.like={like} has kind=auto itself. Name a term of a fixed weight.")

    def reference(self, term: str) -> str:
        """The term whose weighted gradient norm `term` gets."""
        others = [name for name in self.measurable if name not in self.config or self.config[name].kind != AUTO]
        return self.config[term].like or (others[0] if others else "")

    def factors(self, terms: Sequence[str], step: int) -> list[float]:
        """The factor of each term in optimizer step `step`, 0 is the first."""
        return [self._factor(term, step) for term in terms]

    def _factor(self, term: str, step: int) -> float:
        if term not in self.config:
            return 1.0
        own = scheduled(self.config[term], step)
        if self.config[term].kind != AUTO:
            return own
        return self.equalizing.get(term, 1.0) * self._factor(self.reference(term), step) * own

    def equalize(self, norms: Mapping[str, float], weights: Mapping[str, float]) -> list[str]:
        """Take new factors from gradient norms of the unweighted terms; `weights`: those of the objectives, without factors.

        A term without rows or without gradient keeps its factor. The first measurement holds as it is. Returns the terms whose
        factor is at a limit.
        """
        limited = []
        for term, weight in self.config.items():
            if weight.kind != AUTO:
                continue
            like = self.reference(term)
            wanted, own = weights[like] * norms.get(like, 0.0), weights[term] * norms.get(term, 0.0)
            if wanted > 0 and own > 0 and math.isfinite(wanted / own):
                # In the logarithm: factors of 1/100 and of 100 are equally far from 1.
                before = self.equalizing.get(term, wanted / own)
                found = before**MEMORY * (wanted / own) ** (1 - MEMORY)
                self.equalizing[term] = min(max(found, LEAST), MOST)
                limited += [term] if self.equalizing[term] != found else []
        return limited

    def metrics(self, step: int) -> dict[str, float]:
        """The factors of the named terms."""
        return {names.weight(term): self._factor(term, step) for term in self.config}

    def state_dict(self) -> dict[str, float]:
        return dict(self.equalizing)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Terms that this recipe does not equalize are dropped."""
        automatic = {term for term, weight in self.config.items() if weight.kind == AUTO}
        self.equalizing |= {term: factor for term, factor in state.items() if term in automatic}


def scheduled(weight: WeightConfig, step: int) -> float:
    """From `start` at step 0 to `end` at step `steps` and after it."""
    if step >= weight.steps:
        return weight.end
    done = step / weight.steps
    if weight.kind == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return weight.start + (weight.end - weight.start) * done
