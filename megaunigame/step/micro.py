"""One optimizer step in the making."""

from __future__ import annotations

from dataclasses import dataclass, field

from megaunigame.step.inputs import AttackInputs, PassInputs
from megaunigame.step.requests import StepPlan


@dataclass
class Step:
    """One optimizer step in the making, the same kind of calls on every rank whatever the data."""

    number: int
    """0 is the first step of the whole run."""
    lr: float
    """Learning rate of the learner."""
    inputs: list[dict[str, PassInputs]]
    """Per micro-step: the learner's passes by name. Objectives may put rows into them."""
    plans: list[StepPlan]
    """Per micro-step: the rows that take part in it."""
    attacks: list[AttackInputs]
    """Per micro-step: the rows of the attack pass; empty when the plan has none."""
    losses: dict[str, float] = field(default_factory=dict)
    """Term -> its mean over all ranks; filled once the learner has made its passes."""
    passes: int = 0
    """Forwards through the language model that objectives made beside the learner's own."""
