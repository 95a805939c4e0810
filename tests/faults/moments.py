"""Moments of a run at which a test kills, stops, slows or signals a rank: planted in the rank before its launch script.

A moment is the n-th call of a method of the run, or the n-th time that it touches a file of a checkpoint. Files are seen by an
audit hook of Python, so these moments do not depend on how a checkpoint is written.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CALLS = {
    "start-up": ("megaunigame.training.trainer", "Trainer.__init__"),
    "loading": ("megaunigame.checkpoint.manager", "CheckpointManager.load"),
    "dry run": ("megaunigame.training.trainer", "Trainer.dry_run"),
    "step": ("megaunigame.training.stepping", "Stepper.step"),
    "forward": ("megaunigame.engine.zero3", "Learner.forward"),
    "backward": ("megaunigame.engine.zero3", "Learner.backward"),
    "update": ("megaunigame.engine.zero3", "Learner.update"),
    "merge": ("megaunigame.objectives.unigame.pool", "Pool.merge"),
    "save": ("megaunigame.checkpoint.saver", "Saver.begin"),
    "end of a save": ("megaunigame.checkpoint.saver", "Saver._complete"),
    "evaluation": ("megaunigame.training.assembly", "Assembly.evaluate"),
}
"""Moment -> module and method; the moment is the beginning of its n-th call."""
NAN = "NAN"
WRITES = os.O_WRONLY | os.O_RDWR
FILES: dict[str, tuple[str, str]] = {
    "file of a save": ("write", r"/checkpoints/saving-[^/]+/"),
    "manifest": ("write", r"/checkpoints/saving-[^/]+/manifest\.json"),
    "before the rename": ("rename", r"/checkpoints/saving-[^/]+ -> .*/checkpoints/step-\d+$"),
    "before latest": ("rename", r" -> .*/checkpoints/latest$"),
    "pruning": ("rename", r" -> .*/checkpoints/deleting-[^/]+$"),
    "while pruning": ("remove", r"/checkpoints/deleting-|step-\d+/|^[^/]+$"),
    "metrics": ("write", r"/metrics\.jsonl"),
}
"""Moment -> what happens to a file, and to which one; the moment is just before."""


@dataclass(frozen=True)
class Moment:
    """What happens to one rank, and when."""

    rank: int
    at: str
    """A key of CALLS or FILES."""
    number: int = 1
    """Of the call or of the file, counted from 1 in this launch."""
    then: str = "SIGKILL"
    """A signal that the process gets; or `sleep SECONDS`, in this call and in each one after it; or `NAN`: what the call is
    given is multiplied by NaN, once."""
    delay: float = 0.0
    """Seconds from the moment to the signal, which so falls into the middle of what begins there."""
    times: int = 1
    """Of a signal: it is sent so often, 20 ms apart."""

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.then} {self.delay * 1000:.0f} ms after {self.at} {self.number}"


class Countdown:
    """Counts to a moment, and lets happen what the moment says."""

    def __init__(self, moment: Moment):
        self.moment, self.seen, self.poisons = moment, 0, False

    def __call__(self) -> None:
        self.seen += 1
        what, _, seconds = self.moment.then.partition(" ")
        if what == "sleep" and self.seen >= self.moment.number:
            time.sleep(float(seconds))
        elif what == NAN:
            self.poisons = self.seen == self.moment.number
        elif what != "sleep" and self.seen == self.moment.number:
            if self.moment.delay:
                threading.Timer(self.moment.delay, self._send).start()
            else:
                self._send()

    def _send(self) -> None:
        print(f"MOMENT {self.moment}", flush=True)
        for _ in range(self.moment.times):
            os.kill(os.getpid(), getattr(signal, self.moment.then))
            time.sleep(0.02)


def plant(moments: list[Moment]) -> None:
    """Let `moments` happen in this process. Raises AttributeError when the run no longer has such a method."""
    on_files = []
    for moment in moments:
        if moment.at in CALLS:
            count_calls(*CALLS[moment.at], Countdown(moment))
        else:
            on_files.append((*FILES[moment.at], Countdown(moment)))
    if on_files:
        watch_files(on_files)


def count_calls(module: str, method: str, reached: Countdown) -> None:
    owner, name = method.split(".")
    kind = getattr(importlib.import_module(module), owner)
    original: Callable[..., Any] = getattr(kind, name)

    @functools.wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:
        reached()
        if reached.poisons:
            args = (args[0], *(value * float("nan") for value in args[1:]))
        return original(*args, **kwargs)

    setattr(kind, name, counted)


def watch_files(wanted: list[tuple[str, str, Countdown]]) -> None:
    process = os.getpid()  # loader workers inherit the hook

    def seen(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            what, path = "write" if (args[2] or 0) & WRITES else "read", os.fsdecode(args[0])
        elif event == "os.rename":
            what, path = "rename", f"{os.fsdecode(args[0])} -> {os.fsdecode(args[1])}"
        elif event == "os.remove":
            what, path = "remove", os.fsdecode(args[0])
        else:
            return
        for kind, pattern, reached in wanted:
            if kind == what and re.search(pattern, path) and os.getpid() == process:
                reached()

    sys.addaudithook(seen)
