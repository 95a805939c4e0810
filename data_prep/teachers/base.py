"""A teacher predicts one target for each decoded sample.

A teacher is a file of this folder, found by its name. What it predicts, per task:
- depth: float32 (h, w), relative inverse depth (near = large, any unit), at any resolution;
- segmentation: uint8 (h, w), ids 1..n in descending order of area, 0 = none (`ids.py` makes them);
- clip: the cosine in [-1, 1] of the picture and its text;
- codes: those of all pictures of the sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from megaunigame.data.decode import Sample
from megaunigame.errors import ConfigError
from megaunigame.registry import available, find
from megaunigame.settings import fill
from megaunigame.step.codes import PictureCodes

TASKS = ("depth", "segmentation", "clip", "codes")
HOUSE = __name__.removesuffix(".teachers.base")
"""`data_prep` in a clone, `megaunigame.data_prep` where the wheel is installed."""


@dataclass(frozen=True)
class Failure:
    """No prediction for this sample; the reason goes into failures.jsonl."""

    reason: str


Prediction = np.ndarray | float | PictureCodes | Failure


@dataclass(frozen=True)
class Machine:
    """Where and how a teacher runs. Only `dtype` is part of a data set's config: the rest only changes rounding."""

    device: torch.device
    dtype: torch.dtype
    batch: int
    """Most pictures in one forward."""


class Teacher(ABC):
    tasks: ClassVar[tuple[str, ...]]
    """What it can predict; a teacher object predicts one of them."""
    takes_dtype: ClassVar[bool] = False
    """Whether it computes in `Machine.dtype`; the others have a fixed precision."""
    Config: ClassVar[type]
    """Dataclass of its settings, `--set TASK.KEY=VALUE` on the command line."""

    @abstractmethod
    def __init__(self, task: str, config: Any, machine: Machine):
        """Check the settings and load what is needed. Raises ConfigError or ModelError."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """JSON for the manifest: which model, its digest and license, and every setting that changes what it predicts."""

    @abstractmethod
    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        """One prediction or Failure per sample; every sample has an image. There may be more samples than `batch`."""


def load_teacher(task: str, name: str, settings: dict[str, Any], machine: Machine) -> Teacher:
    """The teacher `name` for `task`, with `settings` over its defaults.

    Raises ConfigError for an unknown name, a teacher of other tasks, or an unknown setting; and what loading it raises.
    """
    kind = find("teachers", name, Teacher, house=HOUSE)
    if task not in kind.tasks:
        others = available("teachers", Teacher, house=HOUSE)
        legal = [other for other in others if task in find("teachers", other, Teacher, house=HOUSE).tasks]
        raise ConfigError(f"--{task}-teacher {name}: gives {' and '.join(kind.tasks)}, not {task}. Legal: {', '.join(legal)}.")
    return kind(task, fill(kind.Config, settings, task), machine)
