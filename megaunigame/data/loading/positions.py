"""Assigns positions of a stream to ranks: pure arithmetic, the same on every rank.

One optimizer step uses `accumulation * ranks * (rows its requests ask for)` consecutive positions of a stream. Each
request owns one consecutive range of them, ordered by micro-step, then rank, then row. So the set of samples of (step,
request) depends on the product `accumulation * ranks * count` only: with an adapted accumulation, a run on
another number of ranks sees the same samples in every step. Terms in rotation keep their positions while they rest: those
samples are skipped. With `loader.balance` the ranges of a step are dealt over its micro-steps and ranks (`dealing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from megaunigame.step.requests import RowRequest, StepPlan


@dataclass(frozen=True)
class StreamPositions:
    """Division of streams among data `ranks` and `accumulation` micro-steps per optimizer step."""

    plan: StepPlan
    accumulation: int
    ranks: int

    def per_step(self, stream: str) -> int:
        """Positions of `stream` in one optimizer step, over all ranks."""
        return self.accumulation * self.ranks * sum(r.count for r in self.plan.requests if _owns(r, stream))

    def of(self, request: RowRequest, micro_step: int, rank: int, base: int) -> range:
        """Positions of the request's `count` rows on `rank`.

        `micro_step` counts from the start of this run; `base` is the stream's position at that start.
        """
        start = self.of_all_ranks(request, micro_step, base).start + rank * request.count
        return range(start, start + request.count)

    def of_all_ranks(self, request: RowRequest, micro_step: int, base: int) -> range:
        """Positions of the request's rows of that micro-step, rank after rank."""
        assert request.stream is not None, "a player fills these rows"
        step, micro = divmod(micro_step, self.accumulation)
        owner = self.owner_of(request)
        before = takewhile(lambda other: other.term != owner.term, self.plan.requests)
        earlier = sum(other.count for other in before if _owns(other, request.stream))
        start = base + step * self.per_step(request.stream)
        start += earlier * self.accumulation * self.ranks
        start += micro * self.ranks * request.count
        return range(start, start + self.ranks * request.count)

    def owner_of(self, request: RowRequest) -> RowRequest:
        """The request whose samples these rows are made of."""
        while request.shares is not None:  # that term may itself share samples
            request = next(r for r in self.plan.requests if r.term == request.shares)
        return request


def _owns(request: RowRequest, stream: str | None) -> bool:
    """Whether the request has own samples of the stream."""
    return request.stream == stream and request.shares is None
