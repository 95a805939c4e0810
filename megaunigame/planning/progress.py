"""What a rehearsal is doing, in one line: which layer, how long so far, about how long still."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from torch import nn

ON_TERMINAL, IN_LOG = 0.5, 15.0
"""Seconds between two lines; on a terminal one line is written over and over."""


class Progress:
    """Counts calls of layers, the same in every micro-step: gradient checkpointing recomputes below them.

    The time left is known from the second rehearsal on.
    """

    def __init__(self, stream: TextIO | None, now: Callable[[], float] = time.monotonic):
        """`stream`: None says nothing."""
        self.stream, self.now = stream, now
        self.rewrites = stream is not None and stream.isatty()
        self.start = self.said = now()
        self.per_micro_step: float | None = None
        """Calls in a micro-step of the last rehearsal."""

    def begin(self, checkpointing: bool) -> None:
        """A model is built for the next rehearsal."""
        self.what = f"rehearsing {'with' if checkpointing else 'without'} gradient checkpointing"
        self._say(f"{self.what} ...")

    def watch(self, layers: Sequence[nn.Module], micro_steps: int) -> None:
        """It makes `micro_steps` from now on; `layers`: of its language model."""
        self.calls, self.begun, self.micro_steps = 0, self.now(), micro_steps
        self.hooks = [
            layer.register_forward_pre_hook(self._counted(number, len(layers))) for number, layer in enumerate(layers, start=1)
        ]

    def end(self) -> None:
        """The rehearsal is over."""
        for hook in self.hooks:
            hook.remove()
        self.per_micro_step = self.calls / self.micro_steps
        if self.rewrites and self.stream is not None:
            self.stream.write("\n")

    def _counted(self, number: int, count: int) -> Callable[..., None]:
        def note(*_: Any) -> None:
            self.calls += 1
            if self.now() - self.said >= (ON_TERMINAL if self.rewrites else IN_LOG):
                self._say(f"{self.what}: layer {number} of {count}, {clock(self.now() - self.start)} so far{self._left()}")

        return note

    def _left(self) -> str:
        if not self.per_micro_step:
            return ""
        share = min(1.0, self.calls / (self.per_micro_step * self.micro_steps))
        return f", {share:.0%}, about {clock((self.now() - self.begun) * (1 / share - 1))} left"

    def _say(self, line: str) -> None:
        if self.stream is not None:
            self.said = self.now()
            self.stream.write(f"\r{line:<100}" if self.rewrites else f"{line}\n")
            self.stream.flush()


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
