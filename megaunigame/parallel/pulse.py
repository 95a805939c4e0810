"""What this process does right now: step, phase, and for how long. Kept in memory; a mark costs about a microsecond.

One process is one rank, so there is one pulse. The main thread marks, the threads of the watch read.
"""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

START_UP, LOADING, DRY_RUN, RUN = "start-up", "loading", "dry run", "between steps"
STEP, AGREE, LOGGING, SAVE, EVALUATION, REPORT = "step", "agree", "logging", "save", "evaluation", "report"
"""Phases that are not in `step.phases`."""


@dataclass(frozen=True)
class State:
    """A look at the pulse."""

    step: int
    """Optimizer steps done, plus one within a step. 0: before the first."""
    phase: str
    in_step: bool
    marks: int
    """Marks since the process began: the same on all ranks at the same place of the program."""
    age: float
    """Seconds since the last mark."""


class Pulse:
    """Step and phase of this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self._stack: list[tuple[str, bool]] = [(START_UP, False)]
        self._step, self._marks, self._since = 0, 0, clock()
        self._stopping = mmap.mmap(-1, 1)  # forked processes see what is written later

    @property
    def stopping(self) -> bool:
        """A process of the run was asked to end, and all are about to. Known in loader workers, too."""
        return self._stopping[0] > 0

    @stopping.setter
    def stopping(self, stopping: bool) -> None:
        self._stopping[0] = int(stopping)

    def mark(self) -> None:
        """Something has begun or ended: the process is alive."""
        self._marks += 1
        self._since = self.clock()

    def enter(self, name: str) -> None:
        """Outside of all other phases, the process is in `name` from now on."""
        self._stack[0] = (name, False)
        self.mark()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """The block is an optimizer step, counted from 1. Between its phases it is in `step`."""
        self._step = number
        with self.phase(STEP, in_step=True):
            yield

    @contextlib.contextmanager
    def phase(self, name: str, *, in_step: bool = False) -> Iterator[None]:
        """The block is phase `name`; afterwards the phase around it goes on. `in_step`: it never takes long by itself."""
        self._stack.append((name, in_step))
        self.mark()
        try:
            yield
        finally:
            self._stack.pop()
            self.mark()

    def look(self) -> State:
        # Another thread may be between two of these statements of `phase`: a look may be one mark old, and no more.
        name, in_step = self._stack[-1]
        return State(self._step, name, in_step, self._marks, self.clock() - self._since)


PULSE = Pulse()
"""Of this process."""
