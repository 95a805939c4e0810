"""Deals the samples of an optimizer step over its micro-steps and ranks by the length of their rows.

All ranks wait for the slowest one in every pass, so rows of like length are in one micro-step, and each rank gets about as
many tokens of it. Every rank looks at all samples of the step, in the index only, and finds the same dealing: it is a pure
function of the samples, in whole numbers. A step uses the same samples as without dealing, and a row does not depend on where
it is dealt.
"""

from __future__ import annotations

import heapq
import itertools
import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from megaunigame.data.loading.positions import StreamPositions
from megaunigame.step.amounts import Amounts
from megaunigame.step.requests import RowRequest, StepPlan

CLOSE = 200
"""Loads are even enough when the largest exceeds the mean by less than one part in this many."""
MOST_ROUNDS = 8
"""Swaps per rank that are tried."""
PARTNERS = 16
"""Least loaded ranks that the most loaded one exchanges several items with."""
FEW_PLACES = 8
"""Of a rank, up to which several items are exchanged. With more, swaps of single ones are fine enough and quicker."""

AmountsAt = Callable[[str, range], Amounts]
"""What the samples at some positions of a stream hold."""


@dataclass(frozen=True)
class Dealing:
    """The samples of every rank in one micro-step."""

    positions: Mapping[str, Sequence[np.ndarray]]
    """Term -> positions of its stream on each rank, ascending."""

    def of(self, request: RowRequest, rank: int) -> list[int | None]:
        """Position of each of the request's `places` on a rank; None: an empty one."""
        taken: list[int | None] = list(self.positions[request.term][rank].tolist())
        return taken + [None] * (request.places - len(taken))

    @property
    def digest(self) -> int:
        """Equal where dealings are."""
        code = 0
        for term, ranks in self.positions.items():
            code = zlib.crc32(term.encode(), code)
            for taken in ranks:
                code = zlib.crc32(len(taken).to_bytes(8, "little") + taken.astype("<i8").tobytes(), code)
        return code


@dataclass(frozen=True)
class _Items:
    """Samples of requests that share them, in one micro-step: n over all ranks."""

    positions: np.ndarray
    """(n,) int64."""
    costs: Mapping[str, np.ndarray]
    """Term of each request -> (n,) int64: tokens of its rows."""


class Dealer:
    """Finds the dealing of any micro-step."""

    def __init__(
        self,
        positions: StreamPositions,
        plan_at: Callable[[int], StepPlan],
        lengths: Callable[[RowRequest, Amounts], np.ndarray],
    ):
        """`plan_at`: the plan of a micro-step of this run. `lengths`: (n,) tokens of the rows of samples that hold these
        amounts."""
        self.positions, self.plan_at, self.lengths = positions, plan_at, lengths
        self._last: tuple[int, list[Dealing]] = (-1, [])
        """An optimizer step of this run, and the dealing of each of its micro-steps."""

    def dealing(self, micro_step: int, bases: Mapping[str, int], amounts: AmountsAt) -> Dealing:
        """`micro_step`, and `bases` by stream, as in `StreamPositions.of`. Raises what `amounts` does."""
        step, micro = divmod(micro_step, self.positions.accumulation)
        if self._last[0] != step:
            first = step * self.positions.accumulation
            plans = [self.plan_at(first + number) for number in range(self.positions.accumulation)]
            items = self._items(plans, first, bases, amounts)
            self._last = step, [self._dealt(plan, of_plan) for plan, of_plan in zip(plans, items, strict=True)]
        return self._last[1][micro]

    def _items(
        self, plans: Sequence[StepPlan], first: int, bases: Mapping[str, int], amounts: AmountsAt
    ) -> list[dict[str, _Items]]:
        """The samples of each micro-step, by the term that owns them: those of like length together."""
        found: list[dict[str, _Items]] = [{} for _ in plans]
        for owner, sharing in self._groups(self.positions.plan).items():
            stream, terms = sharing[0].stream, {request.term for request in sharing}
            assert stream is not None, "a player fills these rows"
            taking = [micro for micro, plan in enumerate(plans) if terms & {r.term for r in plan.requests if r.stream}]
            if not taking:
                continue
            ranges = [self.positions.of_all_ranks(sharing[0], first + micro, bases[stream]) for micro in taking]
            known = [amounts(stream, each) for each in ranges]
            costs = {
                request.term: np.concatenate([np.rint(self.lengths(request, each)).astype(np.int64) for each in known])
                for request in sharing
            }
            order = np.argsort(-_sum(costs.values()), kind="stable").reshape(len(taking), -1)
            positions = np.concatenate([np.asarray(each, dtype=np.int64) for each in ranges])
            # Not the longest rows in the first micro-step of every step: what looks at one micro-step sees all lengths.
            turns = np.random.default_rng([ranges[0].start, len(taking)]).permutation(len(taking))
            for micro, at in zip(taking, np.sort(order[turns], axis=1), strict=True):
                found[micro][owner] = _Items(positions[at], {term: cost[at] for term, cost in costs.items()})
        return found

    def _dealt(self, plan: StepPlan, items: Mapping[str, _Items]) -> Dealing:
        """Of one micro-step, group by group; those with more places than samples last: they even out the others."""
        ranks = self.positions.ranks
        loads: dict[Hashable, np.ndarray] = {}
        dealt: dict[str, list[np.ndarray]] = {}
        groups = self._groups(plan)
        for owner in sorted(groups, key=lambda term: groups[term][0].places > groups[term][0].count):
            sharing, own = groups[owner], items[owner]
            costs = [own.costs[request.term] for request in sharing]
            passes = [loads.setdefault((r.pass_name, r.aside), np.zeros(ranks, dtype=np.int64)) for r in sharing]
            so_far = _sum({id(load): load for load in passes}.values())
            rank_of = deal(_sum(costs), so_far, min(request.places for request in sharing))
            for load, cost in zip(passes, costs, strict=True):
                np.add.at(load, rank_of, cost)
            taken = [own.positions[rank_of == rank] for rank in range(ranks)]
            dealt |= {request.term: taken for request in sharing}
        return Dealing(dealt)

    def _groups(self, plan: StepPlan) -> dict[str, list[RowRequest]]:
        """The term that owns some samples -> the requests of `plan` whose rows are made of them, in plan order."""
        groups: dict[str, list[RowRequest]] = {}
        for request in plan.requests:
            if request.stream is not None:
                groups.setdefault(self.positions.owner_of(request).term, []).append(request)
        return groups


def deal(costs: np.ndarray, loads: np.ndarray, places: int) -> np.ndarray:
    """(n,) int64: the rank of each of n items, at most `places` on a rank, so that the largest load is small.

    costs: (n,) int64, at least 0. loads: (W,) int64, what each rank has already.

    The longest item first, each to the least loaded rank with a free place; then, while they lower the largest load, exchanges
    of up to two items of the most loaded rank for up to two others, where there are few places, and else swaps of one.

    Of W `count` items no rank gets more than `count` times the longest one, if there are no loads before: so memory for `count`
    rows of the largest length is enough.
    """
    ranks = len(loads)
    loads, free = loads.copy(), np.full(ranks, places)
    rank_of = np.zeros(len(costs), dtype=np.int64)
    heap = [(load, rank) for rank, load in enumerate(loads.tolist())]
    heapq.heapify(heap)
    for item in np.argsort(-costs, kind="stable").tolist():
        load, rank = heapq.heappop(heap)
        rank_of[item], free[rank], loads[rank] = rank, free[rank] - 1, load + int(costs[item])
        if free[rank]:
            heapq.heappush(heap, (int(loads[rank]), rank))
    for _ in range(MOST_ROUNDS * ranks):
        if ranks * int(loads.max()) * CLOSE <= int(loads.sum()) * (CLOSE + 1):
            break
        if not _exchanged(costs, rank_of, loads, free, places) and not _swapped(costs, rank_of, loads, free):
            break
    return rank_of


def _swapped(costs: np.ndarray, rank_of: np.ndarray, loads: np.ndarray, free: np.ndarray) -> bool:
    """Move an item of the most loaded rank to a free place, or swap it for another item, whichever is better; False: neither
    lowers the larger load of the two ranks."""
    most = int(loads.argmax())
    own = np.flatnonzero(rank_of == most)
    # Columns are the other items, and after them an empty place on each rank that has one.
    others, empty = np.flatnonzero(rank_of != most), np.flatnonzero(free > 0)
    empty = empty[empty != most]
    partner = np.concatenate([rank_of[others], empty])
    given = np.concatenate([costs[others], np.zeros(len(empty), dtype=np.int64)])
    if not len(own) or not len(partner):
        return False
    change = costs[own][:, None] - given[None, :]
    larger = np.maximum(loads[most] - change, loads[partner][None, :] + change)
    row, column = np.unravel_index(int(larger.argmin()), larger.shape)
    if larger[row, column] >= loads[most]:
        return False
    item, rank = own[row], int(partner[column])
    loads[most] -= change[row, column]
    loads[rank] += change[row, column]
    rank_of[item] = rank
    if column < len(others):
        rank_of[others[column]] = most
    else:
        free[most], free[rank] = free[most] + 1, free[rank] - 1
    return True


def _exchanged(costs: np.ndarray, rank_of: np.ndarray, loads: np.ndarray, free: np.ndarray, places: int) -> bool:
    """Exchange up to two items of the most loaded rank for up to two of one of the least loaded; False: that does not lower the
    larger load of the two ranks."""
    if places > FEW_PLACES:
        return False
    most = int(loads.argmax())
    partners = [rank for rank in np.argsort(loads, kind="stable")[:PARTNERS].tolist() if rank != most]
    # (1 + partners, places): the items of a rank, the most loaded one first; an empty place is the item after the last one.
    held = np.full((1 + len(partners), places), len(costs))
    for row, rank in enumerate([most, *partners]):
        own = np.flatnonzero(rank_of == rank)
        held[row, : len(own)] = own
    chosen = _up_to_two(places)
    sums = np.append(costs, 0)[held] @ chosen.T
    numbers = (held < len(costs)).astype(np.int64) @ chosen.T
    # (partners, own choice, choice of the partner): what leaves the most loaded rank.
    change = sums[0][None, :, None] - sums[1:, None, :]
    leaving = numbers[0][None, :, None] - numbers[1:, None, :]
    larger = np.maximum(loads[most] - change, loads[partners][:, None, None] + change)
    fits = (leaving <= free[partners][:, None, None]) & (-leaving <= free[most])
    larger = np.where(fits, larger, loads[most])
    row, given, taken = map(int, np.unravel_index(int(larger.argmin()), larger.shape))
    if larger[row, given, taken] >= loads[most]:
        return False
    rank, moved = partners[row], int(leaving[row, given, taken])
    for items, to in ((held[0][chosen[given] > 0], rank), (held[1 + row][chosen[taken] > 0], most)):
        rank_of[items[items < len(costs)]] = to
    loads[most] -= change[row, given, taken]
    loads[rank] += change[row, given, taken]
    free[most], free[rank] = free[most] + moved, free[rank] - moved
    return True


@lru_cache(maxsize=FEW_PLACES)
def _up_to_two(places: int) -> np.ndarray:
    """(choices, places) int64: 1 where a place is chosen, at most two of them."""
    numbers = [chosen for size in range(3) for chosen in itertools.combinations(range(places), size)]
    return np.array([[place in chosen for place in range(places)] for chosen in numbers], dtype=np.int64)


def _sum(parts: Iterable[np.ndarray]) -> np.ndarray:
    """A new array."""
    return np.sum(list(parts), axis=0)
