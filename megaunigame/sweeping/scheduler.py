"""Starts the runs of a sweep, several at a time, each in a separate process group."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import statistics
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from megaunigame.errors import Interrupted
from megaunigame.monitoring.history import read_run_folder
from megaunigame.monitoring.units import clock_time
from megaunigame.sweeping.runs import LOG_FILE, Run, is_done, is_running, lock, state, write_origin

POLL_SECONDS = 0.1
TAIL_LINES = 12


@dataclass
class Outcome:
    """What is not done after a sweep; empty when everything is done."""

    failed: list[Run] = field(default_factory=list)
    elsewhere: list[Run] = field(default_factory=list)
    """Another process runs them."""
    stopped_by: signal.Signals | None = None

    @property
    def complete(self) -> bool:
        return not (self.failed or self.elsewhere or self.stopped_by)

    def describe(self) -> str:
        """What is not done, and why."""
        lines = [f"Stopped by {self.stopped_by.name}."] if self.stopped_by else []
        for what, runs in (("Failed", self.failed), ("Left to another process", self.elsewhere)):
            lines += [f"{what}: {', '.join(run.name for run in runs)} (see {LOG_FILE} in their folders)."] if runs else []
        return "\n".join(lines)


@dataclass
class Job:
    """A run in progress."""

    number: int
    run: Run
    place: int
    process: subprocess.Popen[bytes]
    started: float

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the launcher, its ranks and their loaders: none may be left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


class Scheduler:
    """Starts the runs that are not done, in order; continues after a failed run. Unfinished runs resume.

    `places`: environment variables of each concurrent run; their number is the limit. `command`: the command line of a run,
    which must write what `runs.is_done` reads. `after_run` is called after every successful run; `say` prints a line.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        places: Sequence[dict[str, str]],
        command: Callable[[Run], list[str]],
        after_run: Callable[[], None],
        say: Callable[[str], None],
    ):
        self.runs, self.places, self.command, self.after_run, self.say = runs, places, command, after_run, say
        finished = [run for run in runs if is_done(run)]
        self.done = len(finished)
        self.durations = [read_run_folder(run.folder).run["seconds"] for run in finished]  # of all its starts together
        self.waiting = deque((n, run) for n, run in enumerate(runs, start=1) if run not in finished)
        self.jobs: list[Job] = []
        self.outcome = Outcome()
        self.signals: list[signal.Signals] = []
        """SIGTERM and SIGINT so far. Written by the signal handler only, at any moment."""

    def carry_out(self) -> Outcome:
        """Run until nothing is left to start. SIGTERM or SIGINT lets the runs save and stop, a second one kills them."""
        say_done = f", {self.done} done before" if self.done else ""
        self.say(f"{len(self.runs)} runs{say_done}; {len(self.places)} at a time")
        with self._listening():
            while (self.waiting or self.jobs) and not self.signals:
                self._start_what_fits()
                time.sleep(POLL_SECONDS)
                for job in [job for job in self.jobs if job.process.poll() is not None]:
                    self._end(job)
            if self.signals:
                self._stop()
        return self.outcome

    def _start_what_fits(self) -> None:
        free = [place for place in range(len(self.places)) if place not in {job.place for job in self.jobs}]
        while free and self.waiting and not self.signals:
            number, run = self.waiting.popleft()
            # Checked again: another sweep on the same disk may have run it.
            if state(run) == "done":
                self.done += 1
                self._note(number, run, "done elsewhere")
            elif not self._start(number, run, free[0]):
                self.outcome.elsewhere.append(run)
                self._note(number, run, f"skipped: another process runs it ({run.log} is locked)")
            else:
                free.pop(0)

    def _start(self, number: int, run: Run, place: int) -> bool:
        """False when another process runs it."""
        again = state(run) == "unfinished"
        write_origin(run)
        command = self.command(run)
        with run.log.open("ab") as log:
            if not lock(log):
                return False
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                env={**os.environ, **self.places[place]},
                stdin=subprocess.DEVNULL,
                stdout=log,  # the children inherit the lock
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches it only through this process, as one group
            )
        self.jobs.append(Job(number, run, place, process, time.monotonic()))
        self._note(number, run, f"{'again' if again else 'start'}   log {run.log}")
        return True

    def _end(self, job: Job) -> None:
        job.signal_group(signal.SIGKILL)  # processes left by a dead launcher must not hold the place
        self.jobs.remove(job)
        run, code = job.run, job.process.returncode
        if code == 0 and is_done(run):
            self.done += 1
            self.durations.append(job.seconds)
            self.after_run()
            mean = statistics.fmean(self.durations)
            left = len(self.waiting) * mean + sum(max(0.0, mean - job.seconds) for job in self.jobs)
            eta = clock_time(left / len(self.places))
            self._note(job.number, run, f"done    {clock_time(job.seconds)} | {self.done} of {len(self.runs)} | ETA {eta}")
            return
        self.outcome.failed.append(run)
        reason = f"exit code {code}" if code else f"it ended before its last step{f', {run.steps}' if run.steps else ''}"
        if code == Interrupted.exit_code:
            reason = "a signal ended it; it is saved, and the same command continues it"
        tail = run.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        self._note(job.number, run, f"FAILED  {clock_time(job.seconds)} | {reason}; the end of {run.log}:")
        self.say("\n".join(f"      | {line}" for line in tail))

    def _note(self, number: int, run: Run, what: str) -> None:
        width = len(str(len(self.runs)))
        self.say(f"[{number:>{width}}/{len(self.runs)}] {run.name:<{max(len(r.name) for r in self.runs)}}  {what}")

    def _stop(self) -> None:
        """Terminate every group and wait for all of its processes: a launcher ends long before its ranks have saved."""
        self.outcome.stopped_by = self.signals[0]
        self.say(f"{self.signals[0].name}: {len(self.jobs)} runs save and stop; once more ends them at once")
        for job in self.jobs:
            job.signal_group(signal.SIGTERM)
        while any(job.process.poll() is None or is_running(job.run) for job in self.jobs):
            if len(self.signals) > 1:
                for job in self.jobs:
                    job.signal_group(signal.SIGKILL)
            time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        def note(number: int, _frame: Any) -> None:
            self.signals.append(signal.Signals(number))

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
