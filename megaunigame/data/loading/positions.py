"""Which rank takes which positions of a stream: pure arithmetic, the same on every rank.

In one optimizer step a stream hands out `accumulation * world_size * (rows its requests ask for)` consecutive
positions. Inside the step each request owns one consecutive range, and inside that range micro-steps come first, then
ranks, then rows. So the set of samples behind (step, request) depends on the product `accumulation * world_size *
count` only: a run may come back on another number of ranks and, with the accumulation adapted, every step still sees
the same samples. Terms that take turns keep their positions while they rest: those samples are passed over.
"""

from __future__ import annotations

from dataclasses import dataclass

from megaunigame.step.requests import RowRequest, StepPlan


@dataclass(frozen=True)
class Slots:
    """The division of streams among `world_size` ranks and `accumulation` micro-steps per optimizer step."""

    plan: StepPlan
    accumulation: int
    world_size: int

    def per_step(self, stream: str) -> int:
        """Positions one optimizer step takes from `stream`, over all ranks."""
        return self.accumulation * self.world_size * sum(r.count for r in self.plan.requests if _owns(r, stream))

    def positions(self, request: RowRequest, micro_step: int, rank: int, base: int) -> range:
        """Positions of the request's `count` rows on `rank`.

        `micro_step` counts from the start of this run, `base` is the stream's position at that start.
        """
        assert request.stream is not None, "an objective fills these rows itself"
        step, micro = divmod(micro_step, self.accumulation)
        owner, earlier = request, 0
        while owner.shares is not None:  # what is shared may itself be shared
            owner = next(r for r in self.plan.requests if r.term == owner.shares)
        for other in self.plan.requests:
            if other.term == owner.term:
                break
            if _owns(other, request.stream):
                earlier += other.count
        start = base + step * self.per_step(request.stream)
        start += earlier * self.accumulation * self.world_size
        start += (micro * self.world_size + rank) * request.count
        return range(start, start + request.count)


def _owns(request: RowRequest, stream: str | None) -> bool:
    """Whether the request takes samples of its own from the stream."""
    return request.stream == stream and request.shares is None
