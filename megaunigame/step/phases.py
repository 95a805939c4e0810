"""Phases of a step: marked by the trainer and the engine, timed only under a `PhaseTimer`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

DATA, PLAYERS, GENERATE, UNDERSTAND = "data", "players", "generate", "understand"
BACKWARD, REDUCE, OPTIMIZER, MERGE = "backward", "reduce", "optimizer", "merge"
OTHER = "other"
"""Time between the phases."""
PHASES = (DATA, PLAYERS, GENERATE, UNDERSTAND, BACKWARD, REDUCE, OPTIMIZER, MERGE, OTHER)
"""In the order of a step."""


class Phases:
    """Marks the phases of a step. This base class measures nothing."""

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """The block is phase `name`; a phase inside it is not counted as part of it."""
        return contextlib.nullcontext()


class PhaseTimer(Phases):
    """Seconds by phase. On CUDA they are those of the device's stream, from events: nothing waits before `pop`."""

    def __init__(self, device: torch.device):
        self.device = device
        self._stack = [OTHER]
        self._marks = [(OTHER, self._now())]
        """(phase, begin) in order."""

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._begin(name)
        try:
            yield
        finally:
            self._stack.pop()
            self._marks.append((self._stack[-1], self._now()))

    def pop(self) -> dict[str, float]:
        """Seconds by phase since the last call (or since the timer was made), without gap or overlap; waits for the device."""
        self._marks.append((self._stack[-1], self._now()))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = dict.fromkeys(PHASES, 0.0)
        for (name, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            seconds[name] = seconds.get(name, 0.0) + self._between(begin, end)
        self._marks = self._marks[-1:]
        return seconds

    def _begin(self, name: str) -> None:
        self._stack.append(name)
        self._marks.append((name, self._now()))

    def _now(self) -> Any:
        """A moment: seconds, or an event on the device's stream."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: Any, end: Any) -> float:
        """Seconds."""
        return begin.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - begin
