"""What an objective is: rows it wants, how a decoded sample becomes such a row, and perhaps a part in the step itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from megaunigame.data.decode import Sample
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.world import World
from megaunigame.pixels import Panel
from megaunigame.step.inputs import AttackInputs, PassInputs, PassOutput, Taps
from megaunigame.step.losses import PassTerm
from megaunigame.step.micro import Step
from megaunigame.step.requests import RowRequest, StepPlan
from megaunigame.step.rotation import Turns
from megaunigame.step.rows import Row


@dataclass(frozen=True)
class Stage:
    """Where a run takes place: all an objective with a part of its own in the step is given beforehand."""

    model: UnifiedModel
    """The learner's module. Whatever goes through it between the learner's own passes must be inside `as_opponent`."""
    as_opponent: Callable[[], AbstractContextManager[None]]
    """The learner stands still: nothing of it takes gradients, dropout is off."""
    plan: StepPlan
    world: World
    seed: int
    accumulation: int


@dataclass
class Joined:
    """What the rehearsal of an objective adds to that of the learner's passes."""

    losses: Sequence[Tensor] = ()
    """() each: walked back together with the losses of the passes."""
    leaves: Sequence[Tensor] = ()
    """Parameters of the objective that the backward reaches."""


class Objective(ABC):
    """One file or folder in this folder; found by module name (`objectives: {understanding: ...}` is `understanding.py`).

    Most objectives are rows and nothing else. One that plays a part of its own in the step (an adversary) overrides the
    hooks, which the trainer calls in the order in which they stand here.
    """

    Config: type[Any]
    """Dataclass of the objective's settings, filled from the recipe."""

    def __init__(self, config: Any):
        self.config = config

    @classmethod
    def planned(cls, config: Any) -> Objective:
        """The objective of a run that is planned, not made: it asks for the same rows and reads nothing from disk."""
        return cls(config)

    def replicated_bytes(self) -> dict[str, int]:
        """What every GPU holds for it besides the model, by name; asked for after `prepare`."""
        return {}

    def host_bytes(self) -> dict[str, int]:
        """What every rank holds for it in host memory at most, by name; asked for after `prepare`."""
        return {}

    def rehearsed_every(self) -> int:
        """Optimizer steps from one of those in which it does what it rehearses to the next."""
        return 1

    def unplanned(self) -> str:
        """What it does with the model in a step and does not rehearse, in words; empty: nothing."""
        return ""

    @abstractmethod
    def rows(self) -> list[RowRequest]:
        """The rows of every micro-step of every rank."""

    def turns(self) -> Turns | None:
        """Terms of its own that take turns; None: all rows are in every micro-step."""
        return None

    @abstractmethod
    def row(self, request: RowRequest, sample: Sample, rng: np.random.Generator) -> Row | None:
        """The neutral row for one sample, or None when the sample has nothing for this term (it becomes a dummy row).

        Runs in data-loader workers; `rng` depends on (seed, stream position) only.
        """

    def check_plan(self, plan: StepPlan) -> None:
        """Once all objectives have asked for rows. Raises ConfigError when the plan lacks what the objective builds on."""

    def check_family(self, family: type[UnifiedModel], name: str, path: str) -> None:
        """Before the model in `path` is loaded. Raises ConfigError when the family cannot do what the objective needs."""

    def pass_terms(self) -> Sequence[PassTerm]:
        """Terms of its own over rows of the plan; asked for behind the checks."""
        return []

    def taps(self, pass_name: str) -> Taps | None:
        """The attention that a learner's pass is to measure for it; asked for behind the checks."""
        return None

    def prepare(self, stage: Stage) -> None:
        """Once, when the learner is built."""

    def rehearse(self, attack: AttackInputs, learner: dict[str, PassInputs]) -> Joined:
        """Before step 1: what the objective does outside the learner's passes, on the largest legal rows, without trace.

        `learner`: the largest inputs of the learner's passes, whose forward and backward follow. An objective whose rows join
        them puts those rows in, and returns what that backward must reach besides weights.
        """
        return Joined()

    def before_learner(self, step: Step) -> None:
        """Once per optimizer step, before anything is counted. Inputs are still where the loader left them."""

    def before_micro_step(self, step: Step, micro: int) -> Tensor | None:
        """Before the passes of a micro-step, whose inputs are on the device. A returned () is added to its loss."""
        return None

    def after_pass(self, step: Step, micro: int, inputs: PassInputs, output: PassOutput, pass_name: str) -> Tensor | None:
        """After one of the learner's passes; `output` must not be kept. A returned () is added to the micro-step's loss."""
        return None

    def after_learner(self, step: Step) -> dict[str, float]:
        """After the update. Returns metrics, equal on all ranks."""
        return {}

    def panels(self) -> list[Panel]:
        """Pictures of the step just made, on rank 0; taken once. Their titles are headings of the report."""
        return []

    def save(self, folder: Path) -> None:
        """Collective: write what the future of the run depends on into `folder`, in files of the objective's own name."""

    def load(self, folder: Path) -> None:
        """Collective: restore what `save` wrote, perhaps on another number of ranks. Raises CheckpointError."""
