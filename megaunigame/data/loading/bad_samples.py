"""Counts samples that cannot be used, and ends the run when there are too many."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megaunigame.errors import DataError
from megaunigame.step.requests import StepPlan

FIRST_READS = 1000
"""The fraction is of at least this many reads, so that one early bad sample is not 100 %."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read, decoded or made into a row; a substitute replaced it."""

    stream: str
    key: str
    """Empty: a whole shard."""
    shard: str
    """File name of the shard."""
    reason: str
    position: int
    """Of the stream."""
    lost: bool = False
    """The shard could not be reached."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.key} of {self.shard}" if self.key else self.shard


class BadSampleCounter:
    """Counts, per stream and over all ranks, the reads and the bad ones among them. Lives in the main process.

    Every micro-batch goes through `add`. In every step the trainer sums `pending()` over the ranks and passes the sums to
    `merge`, which raises DataError on all ranks if, for some stream,

        bad > max_bad_fraction * max(reads, 1000).

    So a fraction of 0 allows no bad sample at all, and 0.01 allows ten at any time.
    """

    def __init__(self, plan: StepPlan, max_bad_fraction: float):
        self.max_bad_fraction = max_bad_fraction
        self.streams = tuple(_rows(plan))
        self.reads = dict.fromkeys(self.streams, 0)
        """Stream -> samples read over all ranks, substitutes included, as of the last `merge`."""
        self.bad = dict.fromkeys(self.streams, 0)
        """Stream -> bad samples over all ranks, as of the last `merge`."""
        self._pending = {s: [0, 0] for s in self.streams}
        self._logged: set[tuple[str, str, str]] = set()
        self._by_shard: dict[str, Counter[str]] = {s: Counter() for s in self.streams}
        self._last: dict[str, BadSample] = {}
        self.elsewhere: Mapping[str, Mapping[str, Any]] = {}
        """Stream -> the line in the quarantine of its last bad sample on any rank, as far as this rank knows them."""

    def add(self, plan: StepPlan, bad: Iterable[BadSample]) -> None:
        """Count one micro-batch of this rank, given its plan and its bad samples; log each bad key once."""
        for stream, rows in _rows(plan).items():
            self._pending[stream][0] += rows
        for sample in bad:
            stream = sample.stream
            self._pending[stream][0] += 1
            self._pending[stream][1] += 1
            self._by_shard[stream][sample.shard] += 1
            self._last[stream] = sample
            name = (stream, sample.shard, sample.key)
            if name not in self._logged:
                self._logged.add(name)
                what = f"sample {sample.key} of {sample.shard}" if sample.key else f"samples of {sample.shard}"
                log.warning("Stream %s: replaced %s: %s", stream, what, sample.reason)

    def pending(self) -> list[int]:
        """This rank's counts since the last `merge`: (reads, bad) of each stream, in a fixed order."""
        return [n for stream in self.streams for n in self._pending[stream]]

    def merge(self, all_ranks: Sequence[int]) -> None:
        """Add the sums of `pending()` over all ranks. Raises DataError on every rank when a stream has too many bad samples."""
        for i, stream in enumerate(self.streams):
            self.reads[stream] += int(all_ranks[2 * i])
            self.bad[stream] += int(all_ranks[2 * i + 1])
            self._pending[stream] = [0, 0]
        for stream in self.streams:
            if self.bad[stream] > self.max_bad_fraction * max(self.reads[stream], FIRST_READS):
                raise DataError(self._verdict(stream))

    def _verdict(self, stream: str) -> str:
        message = (
            f"Stream {stream!r}: {self.bad[stream]:,} of {self.reads[stream]:,} samples could not be used, more than "
            f"max_bad_fraction={self.max_bad_fraction:g} allows (of at least {FIRST_READS} reads)."
        )
        if stream in self.elsewhere and stream not in self._last:
            last_line = self.elsewhere[stream]
            name = f"sample {last_line['key']} of {last_line['shard']}" if last_line["key"] else last_line["shard"]
            message += f" The last, on another rank, {name}: {last_line['reason']}"
        if stream in self._last:
            shard, count = self._by_shard[stream].most_common(1)[0]
            last = self._last[stream]
            message += f" {count} of those met by this rank are in {shard}. The last, in {last.shard}: {last.reason}"
        return message + " Make those shards again, or raise loader.max_bad_fraction to go on without them."

    def as_text(self) -> str:
        """A line per stream with bad samples; empty: there was none."""
        lines = []
        for stream in (s for s in self.streams if self.bad[s]):
            last = self._last.get(stream)
            example = f"; the last on this rank, {last.name}: {last.reason}" if last else ""
            lines.append(f"  {stream}: {self.bad[stream]:,} of {self.reads[stream]:,} samples replaced{example}")
        return "\n".join(["bad samples of the run, by stream (each is in quarantine.jsonl)", *lines]) if lines else ""

    def state_dict(self) -> dict[str, dict[str, int]]:
        """Totals over all ranks; valid for any number of ranks. Without pending counts: merge before saving."""
        return {"reads": dict(self.reads), "bad": dict(self.bad)}

    def load_state_dict(self, state: dict[str, dict[str, int]]) -> None:
        """Streams new in this recipe start at 0; streams no longer in it are dropped."""
        for name, totals in (("reads", self.reads), ("bad", self.bad)):
            totals.update({s: n for s, n in state[name].items() if s in totals})


def _rows(plan: StepPlan) -> dict[str, int]:
    """Stream -> samples of a micro-step of one rank; shared samples count once."""
    rows: dict[str, int] = {}
    active = {request.term for request in plan.requests if request.stream is not None}
    for request in plan.requests:
        if request.stream is not None and request.shares not in active:
            rows[request.stream] = rows.get(request.stream, 0) + request.count
    return rows
