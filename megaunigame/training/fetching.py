"""The micro-batches of a step, on all ranks or on none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from megaunigame.data.loading.stream import MicroBatch
from megaunigame.errors import Interrupted
from megaunigame.parallel.ranks import Ranks
from megaunigame.parallel.together import finishing, raise_all
from megaunigame.training.quarantine import Quarantine


class Fetcher:
    """Fetches a step's micro-batches, and agrees with all ranks that all have theirs."""

    def __init__(self, world: Ranks, quarantine: Quarantine, finish: Callable[[], None]):
        """`finish`: a collective before an error ends the run: it keeps what the steps before have made."""
        self.world, self.quarantine, self.finish = world, quarantine, finish
        self.failed: Exception | None = None
        """An error of this rank between two steps, such as a log that cannot be written: the next fetch raises it on all."""

    def fetch(self, micro_batches: Iterator[MicroBatch], count: int) -> tuple[list[MicroBatch], float]:
        """`count` micro-batches of this rank, and the seconds it waited for them. Raises nothing: `agree` does."""
        began, batches = time.perf_counter(), []
        try:
            batches = [next(micro_batches) for _ in range(count)]
        except Exception as error:  # whatever it is, the other ranks must not wait for this one
            self.failed = self.failed or error
        return batches, time.perf_counter() - began

    def agree(self, step: int, batches: list[MicroBatch]) -> None:
        """Collective, after every fetch: an error of any rank is raised on all; bad samples of all ranks are written down.

        Raises Interrupted on all ranks when one has left its fetch because the run was asked to stop. `step` counts from 1.
        """
        left = isinstance(self.failed, Interrupted)
        error = None if left else self.failed
        bad = [sample for batch in batches for sample in batch.bad]
        _, (failed, any_bad, any_left) = self.world.bounds([error is not None, bool(bad), left])
        if any_bad:
            with finishing(self.finish):
                self.quarantine.add(step, bad)
        if failed:
            self.finish()
            raise_all(self.world, error)
        if any_left:
            raise Interrupted(f"left the fetch of step {step}")
