"""Runs the items of a job on the ranks, batch by batch: what the commands over files have in common."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from megaunigame.errors import DataError, Interrupted
from megaunigame.inference.job import ERROR, Job
from megaunigame.inference.team import Team
from megaunigame.parallel.interruption import heard_signals

T = TypeVar("T")
Result = dict[str, Any]
QUIET_SECONDS = 10.0
"""Between two lines of progress in a log; a terminal shows more."""


def run_job(
    job: Job,
    team: Team,
    *,
    batch: int,
    unit: str,
    check: Callable[[], None],
    load: Callable[[], Callable[[Sequence[T]], list[Result]]],
    prepare: Callable[[int], T],
    failed: Callable[[int, DataError], Result],
    keep: Callable[[Result], Result] = lambda result: result,
) -> list[Result]:
    """Run every item that has no result yet; returns all results in order on rank 0, nothing on the others.

    When there is something to do, rank 0 calls `check` before any rank loads, and then each calls `load`, which loads the model
    and returns what makes the results of a batch. `prepare` reads an item, in another thread, while the batch before runs.
    Either may raise DataError: the item then has the result `failed`. `keep`: makes a result one that can be written, of items
    that had none before. `unit`: what an item is.
    """
    begun = time.monotonic()
    try:
        found = job.begin() if team.is_main else []
        if found:
            check()
        pending = team.tell(job.description, found)
        with stopped_by_signals(f"What is done is kept in {job.folder}: the same command goes on."):
            _run_share(job, team, pending, batch, unit, load, prepare, failed, keep)
        if not team.is_main:
            return []
        ordered = job.merge()
    finally:
        job.close()
    took = f" after {time.monotonic() - begun:.0f} s" if pending else ": all were there already"
    print(f"{job.out}: {len(ordered)} {unit}s{took}.", flush=True)
    return ordered


def _run_share(
    job: Job,
    team: Team,
    pending: Sequence[int],
    batch: int,
    unit: str,
    load: Callable[[], Callable[[Sequence[T]], list[Result]]],
    prepare: Callable[[int], T],
    failed: Callable[[int, DataError], Result],
    keep: Callable[[Result], Result],
) -> None:
    """This rank's part; on rank 0 it ends when all ranks have done theirs."""
    batches = team.share(whole_batches(pending, len(job.digests), batch))
    here, wanted = job.open_part(team.place.rank, team.place.size), set(pending)
    compute = load() if batches else None
    with Progress(team, f" {unit}s", len(job.digests), len(pending)) as progress:
        for results in _results(batches, compute, prepare, failed) if compute else ():
            new = [(item, keep(result)) for item, result in results if item in wanted]
            here.add(new)
            progress.show(team.count(len(new)))
        team.finish(progress.show)


def whole_batches(pending: Sequence[int], count: int, batch: int) -> list[range]:
    """The batches of items 0 .. count - 1 in which an item is pending.

    Whole, with items that have a result already: so which rows run together depends on the batch size alone, not on the
    number of ranks, nor on where a launch before was ended.
    """
    starts = sorted({item // batch * batch for item in pending})
    return [range(start, min(start + batch, count)) for start in starts]


@contextmanager
def stopped_by_signals(advice: str) -> Iterator[None]:
    """Inside, a signal that ends a run raises Interrupted in the main thread: exit code 75, with this advice."""

    def stop(number: int, _frame: object) -> None:
        raise Interrupted(f"{signal.Signals(number).name}: stopped. {advice}")

    before = {number: signal.signal(number, stop) for number in heard_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_no_errors(job: Job, results: Sequence[Result], unit: str) -> None:
    """Raise DataError when some items have an error: the command then ends with code 2."""
    errors = [result for result in results if ERROR in result]
    if errors:
        raise DataError(
            f"{len(errors)} of {len(results)} {unit}s have an error, the first: {errors[0][ERROR]} All are in {job.out}, with "
            f"`{ERROR}`. The same command tries them again, and keeps the others."
        )


class Progress:
    """Rank 0 shows how many items all ranks have done, the rate and the time that is left."""

    def __init__(self, team: Team, unit: str, total: int, pending: int):
        self._before = total - pending
        often: dict[str, Any] = {} if sys.stderr.isatty() else {"mininterval": QUIET_SECONDS, "ncols": 80}
        self._bar = tqdm(total=total, initial=self._before, unit=unit, disable=not (team.is_main and pending), **often)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, done: int) -> None:
        """`done` by all ranks in this launch."""
        self._bar.update(self._before + done - self._bar.n)


def _results(
    batches: Sequence[range],
    compute: Callable[[Sequence[T]], list[Result]],
    prepare: Callable[[int], T],
    failed: Callable[[int, DataError], Result],
) -> Iterator[list[tuple[int, Result]]]:
    """The results of each batch."""

    def read(items: range) -> tuple[dict[int, T], dict[int, Result]]:
        ready: dict[int, T] = {}
        errors: dict[int, Result] = {}
        for item in items:
            try:
                ready[item] = prepare(item)
            except DataError as error:
                errors[item] = failed(item, error)
        return ready, errors

    reader = ThreadPoolExecutor(1)
    try:
        ahead = reader.submit(read, batches[0])
        for number in range(1, len(batches) + 1):
            ready, results = ahead.result()
            if number < len(batches):
                ahead = reader.submit(read, batches[number])
            yield sorted((results | _computed(ready, compute, failed)).items())
    finally:  # not waiting: a signal ends the job also while a file system does not give a picture
        reader.shutdown(wait=False, cancel_futures=True)


def _computed(
    ready: dict[int, T], compute: Callable[[Sequence[T]], list[Result]], failed: Callable[[int, DataError], Result]
) -> dict[int, Result]:
    try:
        return dict(zip(ready, compute(list(ready.values())), strict=True)) if ready else {}
    except DataError as error:
        if len(ready) == 1:
            return {item: failed(item, error) for item in ready}
        # Which one does not fit? Each alone says so.
        return {k: v for item, one in ready.items() for k, v in _computed({item: one}, compute, failed).items()}
