"""What an objective does in the step: an adversary, a measurement of attention.

Players live on the ranks and are built after the model. Every hook makes the same model calls and the same collectives on
every rank, independent of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.ranks import Ranks
from megaunigame.pixels import Panel
from megaunigame.step.inputs import PassOutput, Taps
from megaunigame.step.losses import PassTerm
from megaunigame.step.micro import MicroStep, Step
from megaunigame.step.requests import StepPlan
from megaunigame.storage.pending import PendingFile


@dataclass(frozen=True)
class Context:
    """Everything that a player gets when it is built."""

    model: UnifiedModel
    """The learner's module. A player's calls of it must be inside `aside`."""
    aside: Callable[[], AbstractContextManager[None]]
    """Inside it the learner is frozen: no gradients of its parameters, no dropout."""
    plan: StepPlan
    data_ranks: Ranks
    seed: int


class Player:
    """Hooks, all optional. The trainer calls `taps`, `load` and `rehearse` at the start, the others in this order; the two
    `*_bytes` are for megaunigame plan."""

    name: str = ""
    """Key of its objective in the recipe."""
    terms: Sequence[PassTerm] = ()
    """Loss terms over rows of the plan that other objectives request."""
    losses: Sequence[str] = ()
    """Names of the losses that it may put into `MicroStep.losses`. They belong to the last pass: their graph may not reach
    into an earlier pass of the learner, which is gone by then. A loss over rows of a pass is a `PassTerm`."""
    unplanned: str = ""
    """Description of its model calls that `rehearse` leaves out; empty: none."""
    rehearsed_every: int = 1
    """Optimizer steps from one that does what it rehearses to the next."""

    def replicated_bytes(self) -> dict[str, int]:
        """Bytes that every GPU holds for it in addition to the model, by name."""
        return {}

    def host_bytes(self) -> dict[str, int]:
        """Largest number of bytes that every rank holds for it in host memory, by name."""
        return {}

    def taps(self, pass_name: str) -> Taps | None:
        """The attention measurement that it requests of a learner's pass."""
        return None

    def rehearse(self, micro: MicroStep) -> Sequence[Tensor]:
        """Before step 1: run its own model calls on the largest legal rows; must leave no state.

        The forward and backward of the learner's passes of `micro` follow. A player whose rows join them puts those rows and
        its losses into `micro`, and returns its parameters that get gradients from the backward.
        """
        return ()

    def before_learner(self, step: Step) -> None:
        """Once per optimizer step, before positions are counted. Inputs are still on the CPU."""

    def before_micro_step(self, step: Step, micro: MicroStep) -> None:
        """Before the passes of a micro-step, whose inputs are on the device."""

    def after_pass(self, step: Step, micro: MicroStep, output: PassOutput) -> None:
        """After one of the learner's passes; `output` must not be kept. Rows may be put into later passes."""

    def after_learner(self, step: Step) -> dict[str, float]:
        """After the update. Returns metrics, equal on all ranks."""
        return {}

    def panels(self) -> list[Panel]:
        """Pictures of the last step, on rank 0; a second call returns none. Their titles are headings of the report."""
        return []

    def pending(self) -> list[PendingFile]:
        """Its state as files of this rank, named after the objective; files of every rank are `NAME-rank-00000.safetensors` and
        so on. Copies in host memory: they are written while training goes on. No collective."""
        return []

    @property
    def keeps_state(self) -> bool:
        """Whether it has something in a checkpoint without which it cannot go on."""
        return type(self).pending is not Player.pending

    def load(self, folder: Path) -> None:
        """Restore what the ranks wrote that saved, however many they were. Every rank calls it; no collective. Raises
        CheckpointError, which the trainer raises on all ranks."""
