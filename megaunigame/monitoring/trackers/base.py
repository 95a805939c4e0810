"""What a tracker of experiments gets of a run. `monitor.trackers` names the files of this folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run before its first step."""

    name: str = ""
    recipe: str = ""
    """The resolved recipe, as YAML."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every setting by its dotted key."""


@dataclass(frozen=True)
class TrackedPicture:
    """The pictures of one line of the report, side by side."""

    group: str
    """Heading above them, for example of a panel or of an evaluation suite."""
    line: str
    """Name of the line within its group, the same at every step."""
    image: Image.Image
    caption: str
    """Names of the pictures from left to right, and their texts."""


class Tracker(ABC):
    """The run at one service or in one format; only rank 0 has one.

    After the constructor, all calls come from one thread of its own: a service that does not answer holds up no step. What a
    call raises is said once and counted (trackers/delivery.py).
    """

    package: ClassVar[str]
    """The module that it needs."""
    forgets: ClassVar[bool] = False
    """Whether `start` removes what a killed launch has logged from `first_step` on. Others keep it, and are not told again."""

    def __init__(self, folder: Path, run: RunFacts, first_step: int):
        """Import the package; nothing that waits for a service. `folder`: of the run; `first_step`: of this launch."""
        self.folder, self.run, self.first_step = folder, run, first_step

    @abstractmethod
    def start(self, earlier: str) -> str:
        """Begin, or go on with the run that an earlier launch began. Returns its id there, which is kept for the next launch.

        `earlier`: what `start` has returned to that launch; empty: there was none.
        """

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a step, by name. The same step may come again with other names."""

    @abstractmethod
    def pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        """Pictures of a step."""

    @abstractmethod
    def text(self, step: int, name: str, markdown: str) -> None:
        """A text, such as the answers of an evaluation."""

    @abstractmethod
    def close(self, complete: bool) -> None:
        """The launch ends; all that was logged is flushed. `complete`: False when a signal ended it before the last step."""
