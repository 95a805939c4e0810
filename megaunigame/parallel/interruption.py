"""Signals that end a run: SIGTERM, SIGINT, SIGHUP, SIGUSR1.

The handlers do nothing: Python writes the number of each signal into a pipe, from the C code of the handler, and a thread reads
it. So a signal is noticed at once, also while the main thread waits in a collective, and nothing is printed inside a handler.

A first signal asks this rank to stop. The ranks then agree, at points that all of them reach; one that was asked must never
stop alone. Before there is anything to save, a signal ends the process.

What counts as a second signal: a SIGTERM, SIGINT or SIGHUP that comes `SAME_SECONDS` after the first of them, or later.
Launchers pass on what their process group has already got (the `deepspeed` command turns a Ctrl-C into SIGTERM, a batch script
hands its TERM to srun). SIGUSR1 is a warning of a scheduler: it never is a second signal, and a SIGTERM after it is a first
one.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from megaunigame.errors import Interrupted
from megaunigame.parallel.outcome import OUTCOME
from megaunigame.parallel.pulse import PULSE

if TYPE_CHECKING:  # launch scripts listen before torch is imported, which takes seconds
    from megaunigame.parallel.ranks import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
SAME_SECONDS = 5.0
LOOK_SECONDS = 0.02
"""Between two looks at whether the reader of an output is still there, after a SIGHUP."""
STARTS, SAVES, ENDS = "starts", "saves", "ends"
"""What a process does: nothing that could be lost; work that is saved; the last moments, which a signal must not disturb."""


class Interruption:
    """Whether this run was asked to stop, and whether its ranks have agreed to."""

    def __init__(self, end: Callable[[int, str], None] | None = None):
        """`end`: ends the process with a code and a last line."""
        PULSE.stopping = False
        OUTCOME.clear()
        self.received: signal.Signals | None = None
        """The first signal of this rank. Written by the thread that listens, at any moment."""
        self.agreed = False
        """All ranks stop. Written by all of them at the same place only."""
        self.phase = STARTS
        self._final_since: float | None = None
        """When the first signal but SIGUSR1 came."""
        self._outputs: list[int] = []
        """Of the standard output and the standard error of this process, those that a terminal or another process reads."""
        self._end = end or end_at_once

    def listen(self) -> Interruption:
        """From now on the signals come here. Call it from the main thread, as early as possible."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        for number in heard_signals():
            signal.signal(number, _nothing)
        self._outputs = [output for output in (1, 2) if _has_reader(output)]
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        # Forked workers share the pipe: what they get is not for this process.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        threading.Thread(target=self._read, args=(read,), name="signals", daemon=True).start()
        return self

    def take(self, number: signal.Signals, now: float) -> None:
        """One signal, at `now` seconds of a steady clock."""
        if self.phase == ENDS:
            return
        first, self.received = self.received is None, self.received or number
        PULSE.stopping = True
        if number == signal.SIGHUP:
            self._leave_closed_outputs()
            if self._outputs:  # `| tee log` gets the same signal, and may end later
                threading.Thread(target=self._watch_outputs, name="outputs", daemon=True).start()
        if OUTCOME.failed and number == signal.SIGTERM:
            OUTCOME.dismissed = True
            return
        final = number != signal.SIGUSR1
        if self.phase == STARTS and not OUTCOME.failed:
            self._end(*_end_of_start(number))
        elif final and self._final_since is not None and now - self._final_since >= SAME_SECONDS:
            lost = "what came after the newest checkpoint is lost"
            self._end(128 + number, f"{number.name} came a second time: ended at once, {lost}")
        elif first and not (OUTCOME.failed or OUTCOME.verdict) and os.environ.get("RANK", "0") == "0":
            again = f"SIGTERM or Ctrl-C after {SAME_SECONDS:g} s ends at once"
            _write(f"{number.name}: the run stops after the work at hand, and saves; {again}")
        if final and self._final_since is None:
            self._final_since = now

    def agree(self, ranks: Ranks) -> bool:
        """Collective: whether any rank was asked to stop; then all do."""
        self.agreed = ranks.any(self.received is not None)
        return self.agreed

    def leave_if_agreed(self, ranks: Ranks) -> None:
        """Collective: raises Interrupted on all ranks when any was asked to stop."""
        if self.agree(ranks):
            raise Interrupted("left between two calls of the model")

    def source(self, ranks: Ranks) -> str:
        """Collective: the signal, or the end of a launcher, and the ranks that got it if not all did."""
        own = None if self.received is None else "the end of the launcher" if OUTCOME.launcher_ended else self.received.name
        names = ranks.all_gather_object(own)
        got = [rank for rank, name in enumerate(names) if name is not None]
        first = next(name for name in names if name is not None)
        if len(got) == len(names):
            return first
        listed = ", ".join(map(str, got[:8])) + (", ..." if len(got) > 8 else "")
        return f"{first} on rank{'s' if len(got) > 1 else ''} {listed}"

    def _leave_closed_outputs(self) -> None:
        """A line written to a terminal that is closed, or to a pipe without a reader, would be an error, and the run would not
        save."""
        for output in list(self._outputs):
            if not _has_reader(output):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, output)
                os.close(nowhere)
                self._outputs.remove(output)

    def _watch_outputs(self) -> None:
        while self._outputs:
            self._leave_closed_outputs()
            time.sleep(LOOK_SECONDS)

    def _read(self, read: int) -> None:
        while True:
            for number in os.read(read, 64):  # also those of other handlers of the process
                if number in SIGNALS:
                    self.take(signal.Signals(number), time.monotonic())


def _end_of_start(number: signal.Signals) -> tuple[int, str]:
    """Exit code and last line of a process that gets a signal when there is nothing to save."""
    if OUTCOME.verdict:  # the launcher may be faster than the watch
        return 1, f"ended by {number.name} before the first step, because the run ends: {OUTCOME.verdict}"
    line = "before the first step: nothing to save; the same command starts again"
    if OUTCOME.launcher_ended:
        return Interrupted.exit_code, f"ended with its launcher {line}"
    if number == signal.SIGTERM and os.environ.get("WORLD_SIZE", "1") != "1":
        line += ". Launchers send SIGTERM also when another rank has failed: see its lines"
    return Interrupted.exit_code, f"ended by {number.name} {line}"


def heard_signals() -> list[signal.Signals]:
    """Those of `SIGNALS` that a process takes. A SIGHUP that it was started to ignore (nohup) stays ignored."""
    return [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


def end_at_once(code: int, line: str) -> None:
    """End this process without the interpreter's own end, whatever its other threads do."""
    _write(line)
    os._exit(code)


def _has_reader(output: int) -> bool:
    """Whether a file descriptor is a terminal that is open, or a pipe that another process reads."""
    if os.isatty(output):
        return True
    try:
        if not stat.S_ISFIFO(os.fstat(output).st_mode):
            return False
    except OSError:  # closed by this process
        return False
    poll = select.poll()
    poll.register(output, 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def _write(line: str) -> None:
    """Not through sys.stderr: the main thread may hold its lock."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{f'rank {rank}: ' if rank else ''}{line}\n".encode())
    except OSError:
        pass  # nobody reads it any more; the thread that hears signals must go on


def _nothing(_number: int, _frame: object) -> None:
    """A handler in Python, so that the signal is written into the pipe."""
