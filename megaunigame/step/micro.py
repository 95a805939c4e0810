"""State of the current optimizer step."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from megaunigame.step.inputs import GenerateInputs, PassInputs, UnderstandInputs, of_kind, put_rows
from megaunigame.step.requests import GENERATE, UNDERSTAND, StepPlan


@dataclass
class MicroStep:
    """One forward and one backward of each pass, on one rank."""

    number: int
    """0 is the first of its optimizer step."""
    plan: StepPlan
    """The rows that take part in it."""
    inputs: dict[str, PassInputs]
    """The learner's passes by name. Players may put rows into them."""
    aside: dict[str, PassInputs] = field(default_factory=dict)
    """Rows that the learner does not run, by term, as the loader made them."""
    dealing: int = 0
    """Digest of which samples each rank got, the same on all ranks."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Losses of players in the same backward, by name: () each, this rank's share of the loss of the step."""

    @property
    def understand(self) -> UnderstandInputs:
        """Rows of the learner's understand pass."""
        return of_kind(UnderstandInputs, self.inputs[UNDERSTAND])

    @property
    def generate(self) -> GenerateInputs:
        """Rows of the learner's generate pass."""
        return of_kind(GenerateInputs, self.inputs[GENERATE])

    def put(self, at: slice, rows: UnderstandInputs) -> None:
        """Put rows into the learner's understand pass, instead of those `at`."""
        self.inputs[UNDERSTAND] = put_rows(self.understand, at, rows)


@dataclass
class Step:
    """State of the current optimizer step. All ranks make the same calls regardless of data."""

    number: int
    """0 is the first step of the whole run."""
    lr: float
    """Learning rate of the learner."""
    micro_steps: list[MicroStep]
    peak_lr: float
    """Learning rate of the learner without its schedule."""
    factors: dict[str, float] = field(default_factory=dict)
    """Term -> factor on its weight in this step, the same on all ranks: what players set in `before_learner`, times those of
    the recipe. A term that is not in it has 1."""
    losses: dict[str, float] = field(default_factory=dict)
    """Term -> its mean over all ranks; filled after the learner's passes."""
    updated: bool = True
    """Whether the learner was updated; known after its passes. False: the update was skipped, because a loss or the gradient is
    not finite or far above the last ones. Players' hooks come as in every step; nothing may be learned from its losses."""
    passes: int = 0
    """Forwards through the language model that players made in addition to the learner's."""
