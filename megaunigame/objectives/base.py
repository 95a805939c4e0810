"""Interface of objectives: the rows they request, how a decoded sample becomes a row, and optionally a player."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from megaunigame.data.decode import Sample
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.player import Context, Player
from megaunigame.step.requests import RowRequest, StepPlan
from megaunigame.step.rotation import Rotation
from megaunigame.step.rows import Row


class Objective(ABC):
    """One file or folder in this folder; found by module name (`objectives: {understanding: ...}` is `understanding.py`).

    Objectives are pure: loader workers get a copy. What happens in the step belongs to a `Player`.
    """

    name: str = ""
    """Its key in `objectives` of the recipe."""
    Config: type[Any]
    """Dataclass of the objective's settings, filled from the recipe."""

    def __init__(self, config: Any):
        self.config = config

    @classmethod
    def planned(cls, config: Any) -> Objective:
        """The objective for planning without a run: the same rows, nothing read from disk."""
        return cls(config)

    @abstractmethod
    def rows(self) -> list[RowRequest]:
        """The rows of every micro-step of every rank."""

    def rotation(self) -> Rotation | None:
        """The terms in rotation; None: all rows are in every micro-step."""
        return None

    def row(self, request: RowRequest, sample: Sample, rng: np.random.Generator) -> Row | None:
        """The neutral row for one sample, or None when the sample lacks what this term needs (a dummy row takes its place).

        Runs in data-loader workers; `rng` depends on (seed, stream position) only. Needed by objectives that request rows.
        """
        raise NotImplementedError(f"{type(self).__name__} requests rows of {request.term!r} and has no method `row`.")

    def check_plan(self, plan: StepPlan) -> None:
        """Called with the rows of all objectives. Raises ConfigError when the plan lacks what the objective needs."""

    def check_family(self, family: type[UnifiedModel], name: str, folder: str, plan: StepPlan) -> None:
        """Called before the model in `folder` is loaded. Raises ConfigError when it cannot do what the objective needs."""

    def redraws(self) -> dict[str, tuple[str, str]]:
        """Representation -> (prompt, geometry) of the rows that train the model to draw it from a picture; of several wordings,
        the first."""
        return {}

    measures_attention: ClassVar[bool] = False
    """Whether its player taps the attention of a pass; one objective of a recipe may."""

    def added_terms(self, plan: StepPlan) -> Sequence[str]:
        """Names that losses of its player may have."""
        return ()

    def player(self, context: Context) -> Player | None:
        """Its player, built after the model; None: it does nothing in the step."""
        return None
