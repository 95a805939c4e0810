"""Processes that prepare micro-batches ahead, and what the main process says when they are slow or dead."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from megaunigame.data.loading.blocks import Blocks
from megaunigame.data.loading.leaving import Leaving
from megaunigame.data.loading.orphans import end_with_parent
from megaunigame.data.loading.packing import Package, pack
from megaunigame.data.loading.stream import MicroBatch, MicroBatches
from megaunigame.data.loading.waits import Wait
from megaunigame.data.loading.whereabouts import Whereabouts
from megaunigame.errors import Interrupted, LoaderError, UserError

BEGIN_SECONDS = 60.0
"""Within which all workers have begun. They are forked from a process with threads: one that was forked while a thread held a
lock that it needs waits for it forever, and another fork is all it takes."""
BEGIN_TRIES = 3
Answer = Package[MicroBatch] | UserError | Interrupted
"""What a worker gives for a micro-step."""

log = logging.getLogger(__name__)


class MicroBatchLoader:
    """Micro-steps [first, last) of this run in order, `prefetch` prepared ahead by each of `workers` processes (0: this one).

    The sequence does not depend on `workers`. Does not change the global random state of torch.
    """

    def __init__(
        self,
        dataset: MicroBatches,
        first: int,
        last: int,
        workers: int,
        prefetch: int = 2,
        *,
        pin_memory: bool = False,
        slow_seconds: float = 60.0,
        stopping: Callable[[], bool] = lambda: False,
    ):
        """`pin_memory`: for a run on a GPU only. `slow_seconds`: a longer wait is a warning.
        `stopping`: whether the run was asked to stop; then a wait is left after `leaving.PATIENCE`."""
        self.stopping = stopping
        self.steps = range(first, last)
        self.slow_seconds = slow_seconds
        self.workers, self.prefetch, self.pin_memory = workers, prefetch, pin_memory
        self._doing = Whereabouts(workers)
        self._reporter = _Reporter(dataset, self._doing)
        self._loader = DataLoader(
            self._reporter,
            sampler=self.steps,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=partial(_start_worker, self._doing) if workers else None,
            generator=torch.Generator(),  # else the loader draws its workers' seeds from the global generator
        )

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[MicroBatch]:
        """Raises the UserError of a worker, LoaderError when one has died, and Interrupted when a wait was left."""
        batches, team = self._started()
        blocks = self._reporter.blocks
        slow, leaving = _SlowData(self.slow_seconds, self._doing), Leaving(self.stopping, team)
        try:
            for _ in self.steps:
                with slow.waiting(), leaving.waiting():
                    batch = self._next(batches, team, leaving)
                if isinstance(batch, Exception):
                    raise batch
                yield batch.unpacked(blocks, pin=self.pin_memory)
        except Exception:
            for process in team:  # they ignore the SIGTERM of the interpreter's end, which would wait for them
                process.kill()
            raise
        finally:
            slow.close()
            leaving.close()

    def _started(self) -> tuple[Iterator[Answer], list[BaseProcess]]:
        """The iterator, and its processes, which have begun. Raises LoaderError when they do not."""
        for _ in range(BEGIN_TRIES):
            batches, team = self._forked()
            if self._begin(team):
                return batches, team
            log.warning(
                "Loader workers of this rank have not begun within %g s. %s They are started again.",
                *(BEGIN_SECONDS, self._doing.as_text()),
            )
            for process in team:
                process.kill()
            del batches
        raise LoaderError(
            f"The loader workers of this rank did not begin, {BEGIN_TRIES} times in a row. Type loader.workers=0 to load in "
            "the main process. The same command resumes from the newest checkpoint."
        )

    def _begin(self, team: Sequence[BaseProcess]) -> bool:
        """Whether all workers begin, or one has ended or the run is asked to stop, which the next fetch finds."""
        until = time.monotonic() + BEGIN_SECONDS
        while not self._doing.have_begun({process.pid for process in team}):
            if any(process.exitcode is not None for process in team) or self.stopping():
                return True
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def _forked(self) -> tuple[Iterator[Answer], list[BaseProcess]]:
        others, handler = set(multiprocessing.active_children()), signal.getsignal(signal.SIGCHLD)
        self._reporter.blocks = Blocks(self.workers, self.prefetch)  # others than an earlier team's, which may still be read
        batches = iter(self._loader)
        # torch would raise the death of a worker wherever the main process is, in the middle of a pass whose collectives
        # other ranks wait in. Here it is met at the next fetch, whose errors the ranks agree on.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
        return batches, [process for process in multiprocessing.active_children() if process not in others]

    def _next(self, batches: Iterator[Answer], team: Sequence[BaseProcess], leaving: Leaving) -> Answer:
        try:
            return next(batches)
        except Exception as error:
            if leaving.left:
                raise Interrupted("left while data was waited for") from error
            dead = next((process for process in team if process.exitcode), None)
            if dead is None:
                raise
            doing = self._doing.of(dead.pid)
            reading = f" while it read {doing[0]}" if doing else ""
            raise LoaderError(
                f"A loader worker of this rank (pid {dead.pid}) {_end_of(dead)}{reading}. "
                f"The usual cause is the memory of the host: type fewer loader.workers ({len(team)} here) or a smaller "
                "loader.prefetch. The same command resumes from the newest checkpoint."
            ) from error


def _end_of(process: BaseProcess) -> str:
    code = process.exitcode
    return f"ended with exit code {code}" if code is None or code > 0 else f"was killed by {signal.Signals(-code).name}"


class _SlowData(Wait):
    """Warns when a wait reaches `seconds`, and each time it has doubled since."""

    def __init__(self, seconds: float, doing: Whereabouts):
        super().__init__()
        self.seconds, self.doing = seconds, doing
        threading.Thread(target=self._watch, daemon=True, name="slow data").start()

    def _watch(self) -> None:
        began, limit = None, self.seconds
        while not self.closed.wait(self.seconds / 8):
            since = self.since
            if since != began:
                began, limit = since, self.seconds
            if since is not None and (waited := time.monotonic() - since) >= limit:
                limit = 2 * waited
                log.warning("This rank has waited %.0f s for its data. %s", waited, self.doing.as_text())


class _Reporter(Dataset["Answer"]):
    """Returns an error whose message says all, instead of raising it: the DataLoader would add the worker's traceback."""

    def __init__(self, dataset: MicroBatches, doing: Whereabouts):
        self.dataset, self.doing = dataset, doing
        self.blocks: Blocks | None = None

    def __getitem__(self, micro_step: int) -> Answer:
        worker = get_worker_info()
        slot, process = 0 if worker is None else worker.id, os.getpid()
        try:
            return pack(self.dataset.made(micro_step, lambda doing: self.doing.note(slot, process, doing)), self.blocks)
        except (UserError, Interrupted) as error:
            return error
        finally:
            self.doing.note(slot, process, "")


def _start_worker(doing: Whereabouts, worker: int) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    gc.freeze()  # garbage collection would touch, and so copy, all memory inherited from the main process
    # Launchers and Ctrl-C signal whole process trees. The main process needs its workers to finish the step and save; they
    # end with it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    doing.note(worker, os.getpid(), "")
