"""Watches over the ranks of a run: each tells what it does, and a rank that is lost or stuck ends the run, with its name.

Two threads per rank. The messenger alone uses the network, and may hang there when a node is cut off. The watchdog decides
from what is in memory, and ends the process without the main thread, which may be in a collective that never returns.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from megaunigame.errors import LostRankError, TransientError, UserError
from megaunigame.parallel.beats import Limits, Verdict
from megaunigame.parallel.heart import Heart
from megaunigame.parallel.home import home_of_process
from megaunigame.parallel.last_words import leave, leave_error, within
from megaunigame.parallel.line import Line
from megaunigame.parallel.lookout import Lookout
from megaunigame.parallel.outcome import OUTCOME
from megaunigame.parallel.processes import launcher_pid
from megaunigame.parallel.pulse import PULSE
from megaunigame.parallel.ranks import Ranks

BEAT_SECONDS = 2.0
STALL_SHARE = 0.8
"""Of the limit of a collective: the watch comes first, and has a name."""
GRACE_SECONDS = 10.0
"""After the error of another rank: this one may be about to end with the same one."""
CALL_SECONDS = 3.0
"""Longest use of the network by a thread that must go on."""
log = logging.getLogger(__name__)


class Watch:
    """Of this rank, from the meeting of the ranks to the end of the run: `with Watch(...):`.

    An error inside is told to the other ranks. One that means that another rank is gone becomes a LostRankError with its name.
    """

    def __init__(self, world: Ranks, folder: str | Path, *, timeout_minutes: float, lost_seconds: float):
        """`folder`: of the run. `timeout_minutes`: of collectives. `lost_seconds`: how long a rank may be silent."""
        self.world, self.folder = world, Path(folder)
        self.limits = Limits(lost_seconds, STALL_SHARE * 60 * timeout_minutes)
        self.every = min(BEAT_SECONDS, lost_seconds / 5)
        self.heart = Heart(home_of_process(world.rank), PULSE)
        self.launcher = launcher_pid()
        self.line: Line | None = None
        self.lookout = Lookout(self.heart, [self.heart.home], self.limits)
        self.verdict = None
        self._told_at = 0.0
        """When another rank said it."""
        self._known, self._closed = threading.Event(), threading.Event()
        self._pen = threading.Lock()
        """Held by the thread that writes the last words; never released: one file, one writer."""
        self._threads: list[threading.Thread] = []

    @property
    def verdict(self) -> Verdict | None:
        """Why the run ends."""
        return self._verdict

    @verdict.setter
    def verdict(self, verdict: Verdict | None) -> None:
        self._verdict = verdict
        OUTCOME.verdict = "" if verdict is None else verdict.text

    def __enter__(self) -> Watch:
        """Collective."""
        OUTCOME.failed = False  # of an earlier run of this process
        if self.world.met is not None:
            self.line = Line(self.world.met.connect(), self.world.rank, self.world.size)
            self.line.open(self.heart.beat())
            homes = self.world.all_gather_object(self.heart.home)  # after it, every rank has said its first beat
            self.lookout = Lookout(self.heart, homes, self.limits)
            self.lookout.left = self._left
            self._start(self._talk, "messenger")
        self._start(self._watch, "watchdog")
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        lost = None
        if isinstance(error, Exception):
            OUTCOME.failed = True
            if says_lost(error):
                lost = self._who_is_lost()
            else:
                self._tell(error)
            if not isinstance(error, (UserError, TransientError)):  # which all ranks have, as a rule
                self._let_others_hear()
        self.close()
        if lost is not None:
            assert error is not None
            if self._pen.acquire(blocking=False):
                leave_error(self.folder, self.world.rank, error)
            raise LostRankError(f"{lost.text}. The run resumes from its newest checkpoint with the same command.") from error

    def close(self) -> None:
        """This rank leaves; from now on nobody waits for its beats."""
        self.heart.leaves = True
        self._closed.set()
        for thread in self._threads:
            thread.join(CALL_SECONDS)  # not longer: the network may hang

    def _start(self, run: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _talk(self) -> None:
        """The messenger."""
        assert self.line is not None
        try:
            while not self._closed.wait(self.every):
                beats, verdict = self.line.exchange(self.heart.beat())
                self.lookout.hear(beats)
                if verdict is not None and self.verdict is None:
                    self._told_at, self.verdict = time.monotonic(), verdict
            self.line.say(self.heart.beat())  # its last: it leaves
        except dist.DistError as error:
            self.lookout.broken = str(error).splitlines()[0]

    def _watch(self) -> None:
        """The watchdog."""
        while not self._closed.wait(self.every / 2):
            self._look_for_the_launcher()
            told = self.verdict
            if told is None:
                found = self.lookout.find(self.every / 2)
                if found is not None:
                    self._judge(found)
                    self._finish(own=True)
            elif not told.failed or OUTCOME.failed or time.monotonic() - self._told_at > GRACE_SECONDS:
                self._finish(own=False)

    def _look_for_the_launcher(self) -> None:
        if self.launcher is None or os.getppid() == self.launcher:
            return
        self.launcher = None
        if not PULSE.stopping:
            log.warning("The launcher of rank %d has ended: the run saves after this step, then stops.", self.world.rank)
            OUTCOME.launcher_ended = True
            os.kill(os.getpid(), signal.SIGTERM)

    def _judge(self, found: Verdict) -> None:
        """Tell all ranks; what another one has told before counts."""
        self.verdict = found

        def tell(line: Line) -> None:
            self.verdict = line.judge(found)

        self._call(tell)

    def _finish(self, *, own: bool) -> None:
        """End the process; or have the main thread do it, if it can."""
        assert self.verdict is not None
        self._known.set()
        if OUTCOME.failed or not self._pen.acquire(blocking=False):
            return  # the main thread ends the process, and says why
        where = leave(self.folder, self.world.rank)
        if own or self.world.rank in self.verdict.ranks or self.world.local_rank == 0:
            text = f"{self.heart.home} ends the run: {self.verdict.text}."
            last = f"The stacks of all threads are in {self.folder}/rank_*.stacks. Here, the main thread is in\n{where}"
            print(f"{text}\n{last}", file=sys.stderr, flush=True)
        self._let_others_hear()
        os._exit(1)

    def _let_others_hear(self) -> None:
        """Rank 0 has the store: what it said is lost when it ends."""
        if self.world.rank == 0 and self.line is not None:
            time.sleep(2.5 * self.every)

    def _left(self, rank: int) -> bool:
        said: list[bool] = []
        self._call(lambda line: said.append(line.beat_of(rank).leaves))
        return said == [True]

    def _call(self, use: Callable[[Line], object]) -> None:
        """Use the line, if it can be used at once."""

        def attempt(line: Line) -> None:
            try:
                use(line)
            except dist.DistError as error:
                self.lookout.broken = str(error).splitlines()[0]

        line = self.line
        if line is not None and not self.lookout.broken:
            within(CALL_SECONDS, lambda: attempt(line))

    def _tell(self, error: Exception) -> None:
        """The other ranks may not come to the same error."""
        first = (str(error).splitlines() or [""])[0]
        self._judge(Verdict(f"{self.heart.home} ended with {type(error).__name__}: {first}", (self.world.rank,), failed=True))

    def _who_is_lost(self) -> Verdict | None:
        """Of this rank's collective. Waits until the watchdog knows."""
        self._known.wait(self.limits.silence + GRACE_SECONDS if self.line is not None else 0)
        return self.verdict


def says_lost(error: Exception) -> bool:
    """Whether an error is that of a collective whose other side is gone, or does not come."""
    if isinstance(error, (UserError, TransientError)) or not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo" in text or "monitoredBarrier" in text
