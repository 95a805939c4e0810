"""The phases of a step, marked in the pulse of the process, too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from megaunigame.parallel.pulse import PULSE
from megaunigame.step.phases import Phases


class MarkedPhases(Phases):
    """What `phases` does with them stays as it is."""

    def __init__(self, phases: Phases):
        self.phases = phases

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        with PULSE.phase(name, in_step=True), self.phases(name):
            yield
