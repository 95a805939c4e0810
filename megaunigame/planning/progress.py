"""What a rehearsal is doing, in one line: which layer, how long so far, about how long still."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
        self.start = self.last_line = now()
        self.per_micro_step: float | None = None
        """Calls in a micro-step of the last rehearsal."""

    @contextmanager
    def line(self, checkpointing: bool) -> Iterator[None]:
        """A model is built and rehearsed in here; the line ends with it, so that an error begins on the next one."""
        self.what = f"rehearsing {'with' if checkpointing else 'without'} gradient checkpointing"
        self._write(f"{self.what} ...")
        try:
            yield
        finally:
            if self.rewrites and self.stream is not None:
                self.stream.write("\n")

    @contextmanager
    def watching(self, layers: Sequence[nn.Module], micro_steps: int) -> Iterator[None]:
        """`micro_steps` are made in here; `layers`: of its language model."""
        self.calls, self.first_call, self.micro_steps = 0, self.now(), micro_steps
        hooks = [layer.register_forward_pre_hook(self._counted(n, len(layers))) for n, layer in enumerate(layers, start=1)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self.per_micro_step = self.calls / micro_steps

    def _counted(self, number: int, count: int) -> Callable[..., None]:
        def note(*_: Any) -> None:
            self.calls += 1
            if self.now() - self.last_line >= (ON_TERMINAL if self.rewrites else IN_LOG):
                self._write(f"{self.what}: layer {number} of {count}, {clock(self.now() - self.start)} so far{self._left()}")

        return note

    def _left(self) -> str:
        if not self.per_micro_step:
            return ""
        share = min(1.0, self.calls / (self.per_micro_step * self.micro_steps))
        return f", {share:.0%}, about {clock((self.now() - self.first_call) * (1 / share - 1))} left"

    def _write(self, line: str) -> None:
        if self.stream is not None:
            self.last_line = self.now()
            width = shutil.get_terminal_size().columns - 1  # a line that wraps cannot be written over
            self.stream.write(f"\r{line[:width]:<{width}}" if self.rewrites else f"{line}\n")
            self.stream.flush()


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
