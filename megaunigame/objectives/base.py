"""What an objective is: rows it wants, how a decoded sample becomes such a row, and perhaps a player."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from megaunigame.data.decode import Sample
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.player import Player, Stage
from megaunigame.step.requests import RowRequest, StepPlan
from megaunigame.step.rotation import Rotation
from megaunigame.step.rows import Row


class Objective(ABC):
    """One file or folder in this folder; found by module name (`objectives: {understanding: ...}` is `understanding.py`).

    Most objectives are rows and nothing else, and are pure: loader workers get a copy. What happens in the step is the part
    of a `Player`.
    """

    Config: type[Any]
    """Dataclass of the objective's settings, filled from the recipe."""

    def __init__(self, config: Any):
        self.config = config

    @classmethod
    def planned(cls, config: Any) -> Objective:
        """The objective of a run that is planned, not made: it asks for the same rows and reads nothing from disk."""
        return cls(config)

    @abstractmethod
    def rows(self) -> list[RowRequest]:
        """The rows of every micro-step of every rank."""

    def rotation(self) -> Rotation | None:
        """Its terms that are in rotation; None: all rows are in every micro-step."""
        return None

    @abstractmethod
    def row(self, request: RowRequest, sample: Sample, rng: np.random.Generator) -> Row | None:
        """The neutral row for one sample, or None when the sample has nothing for this term (it becomes a dummy row).

        Runs in data-loader workers; `rng` depends on (seed, stream position) only.
        """

    def check_plan(self, plan: StepPlan) -> None:
        """Once all objectives have asked for rows. Raises ConfigError when the plan lacks what the objective builds on."""

    def check_family(self, family: type[UnifiedModel], name: str, folder: str, plan: StepPlan) -> None:
        """Before the model in `folder` is loaded. Raises ConfigError when it cannot do what the objective needs."""

    def player(self, stage: Stage) -> Player | None:
        """What it does in the step, once the model is built; None: nothing."""
        return None
