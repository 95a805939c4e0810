"""What an objective is: rows it wants, and how a decoded sample becomes such a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from megaunigame.data.decode import Sample
from megaunigame.passes import Row, RowRequest


class Objective(ABC):
    """One file in this folder; found by module name (`objectives: {understanding: ...}` is `objectives/understanding.py`)."""

    Config: type[Any]
    """Dataclass of the objective's settings, filled from the recipe."""

    def __init__(self, config: Any):
        self.config = config

    @abstractmethod
    def rows(self) -> list[RowRequest]:
        """The rows of every micro-step of every rank."""

    @abstractmethod
    def row(self, request: RowRequest, sample: Sample, rng: np.random.Generator) -> Row | None:
        """The neutral row for one sample, or None when the sample has nothing for this term (it becomes a dummy row).

        Runs in data-loader workers; `rng` depends on (seed, stream position) only.
        """
