"""One optimizer step in the making."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from megaunigame.step.inputs import PassInputs
from megaunigame.step.requests import StepPlan


@dataclass
class MicroStep:
    """One forward per pass and one backward, on one rank."""

    number: int
    """0 is the first of its optimizer step."""
    plan: StepPlan
    """The rows that take part in it."""
    inputs: dict[str, PassInputs]
    """The learner's passes by name. Players may put rows into them."""
    aside: dict[str, PassInputs] = field(default_factory=dict)
    """Rows that the learner does not run, by term, where the loader left them."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Losses of players that the backward walks as well, by name: () each, this rank's share of the loss of the step."""


@dataclass
class Step:
    """One optimizer step in the making, the same kind of calls on every rank whatever the data."""

    number: int
    """0 is the first step of the whole run."""
    lr: float
    """Learning rate of the learner."""
    micro_steps: list[MicroStep]
    losses: dict[str, float] = field(default_factory=dict)
    """Term -> its mean over all ranks; filled once the learner has made its passes."""
    passes: int = 0
    """Forwards through the language model that players made in addition to the learner's."""
