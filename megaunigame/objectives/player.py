"""The part an objective takes in the step itself: an adversary, a measurement of attention, a reward.

Players live on the ranks and are built whole, once the model is there. Every hook makes the same model calls and the same
collectives on every rank, whatever the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.world import World
from megaunigame.pixels import Panel
from megaunigame.step.inputs import PassOutput, Taps
from megaunigame.step.losses import PassTerm
from megaunigame.step.micro import MicroStep, Step
from megaunigame.step.requests import StepPlan


@dataclass(frozen=True)
class Stage:
    """Where a run takes place: all that a player is given."""

    model: UnifiedModel
    """The learner's module. What goes through it between the learner's passes must be inside `aside`."""
    aside: Callable[[], AbstractContextManager[None]]
    """The learner is frozen: nothing of it takes gradients, dropout is off."""
    plan: StepPlan
    world: World
    seed: int
    accumulation: int


class Player:
    """Hooks that the trainer calls in the order in which they stand here. All of them are optional."""

    terms: Sequence[PassTerm] = ()
    """Loss terms over rows of the plan that others ask for."""
    losses: Sequence[str] = ()
    """Names of what it may put into `MicroStep.losses`."""
    unplanned: str = ""
    """What it does with the model in a step and does not rehearse, in words; empty: nothing."""
    rehearsed_every: int = 1
    """Optimizer steps from one of those in which it does what it rehearses to the next."""

    def replicated_bytes(self) -> dict[str, int]:
        """What every GPU holds for it besides the model, by name."""
        return {}

    def host_bytes(self) -> dict[str, int]:
        """What every rank holds for it in host memory at most, by name."""
        return {}

    def taps(self, pass_name: str) -> Taps | None:
        """The attention that a learner's pass is to measure for it."""
        return None

    def rehearse(self, micro: MicroStep) -> Sequence[Tensor]:
        """Before step 1: what it does outside the learner's passes, on the largest legal rows, without trace.

        The forward and backward of the learner's passes of `micro` follow. A player whose rows join them puts those rows and
        its losses into `micro`, and returns its parameters that the backward reaches.
        """
        return ()

    def before_learner(self, step: Step) -> None:
        """Once per optimizer step, before anything is counted. Inputs are still where the loader left them."""

    def before_micro_step(self, step: Step, micro: MicroStep) -> None:
        """Before the passes of a micro-step, whose inputs are on the device."""

    def after_pass(self, step: Step, micro: MicroStep, pass_name: str, output: PassOutput) -> None:
        """After one of the learner's passes; `output` must not be kept. Rows may be put into passes still to come."""

    def after_learner(self, step: Step) -> dict[str, float]:
        """After the update. Returns metrics, equal on all ranks."""
        return {}

    def panels(self) -> list[Panel]:
        """Pictures of the step just made, on rank 0; taken once. Their titles are headings of the report."""
        return []

    def save(self, folder: Path) -> None:
        """Collective: write what the future of the run depends on into `folder`, in files named after the objective."""

    def load(self, folder: Path) -> None:
        """Collective: restore what `save` wrote, perhaps on another number of ranks. Raises CheckpointError."""
