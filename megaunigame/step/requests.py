"""Rows that objectives ask for, and the plan made of them: which passes, in which order, with which rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

from megaunigame.errors import ConfigError
from megaunigame.step.rotation import Rotation

UNDERSTAND = "understand"
GENERATE = "generate"
PASS_ORDER = (GENERATE, UNDERSTAND)
"""The learner's passes, in the order of a micro-step."""
FIT, SQUASH, CROP = "fit", "squash", "crop"
"""How a picture becomes a square: whole, with bars; whole, stretched; its middle."""
GEOMETRIES = (FIT, SQUASH, CROP)
SPARE = 0.25
"""Places of a rank beyond its average number of rows, as a part of that number."""


@dataclass(frozen=True)
class RowRequest:
    """`count` rows of one loss term, in every micro-step of every rank; where it has more `places`, on average over ranks."""

    term: str
    """Name of the loss term, unique in a plan; also the metric name `loss/<term>`."""
    pass_name: str
    """`understand` or `generate`."""
    stream: str | None
    """Name of the data stream (a key of the recipe's `data`); None: a player fills the rows before the step."""
    count: int
    weight: float = 1.0
    takes_source: bool = False
    """Whether rows carry a source image through the understanding path (understand rows always do)."""
    context_pictures: int = 0
    """Generate rows that take sources only: most source images in the context of a row (`GenerateRow.context`); 0: rows have no
    context. Needs a family that interleaves."""
    shares: str | None = None
    """Another term of the same stream and count, whose samples these rows are made of; None: other samples.

    A row aside is a dummy where that term has a dummy row or a substitute of the sample."""
    target_is_source: bool = False
    """Generate rows only: whether the picture to generate is the sample's own."""
    needs: str = ""
    """What a sample must have to fill a row, for messages: "a picture and a `caption`"."""
    geometry: str = ""
    """One of `GEOMETRIES`, for all pictures of a row alike, so that a source and a target of the same sample show the same part
    in the same shape. Empty: `fit` in the understand pass, `crop` in the generate pass."""
    aside: bool = False
    """The loader makes the rows, a player uses them, the learner does not run them. Not a loss term."""
    turns: int = 0
    """At most this many question-answer pairs of a conversation are in a row; 0: all. Rows are dealt over the ranks by it."""
    places: int = 0
    """Rows in the tensors of every rank: `count`, or more where the ranks get different numbers of rows. Those without a sample
    are dummy rows."""

    def __post_init__(self) -> None:
        if not self.geometry:
            object.__setattr__(self, "geometry", FIT if self.pass_name == UNDERSTAND else CROP)
        object.__setattr__(self, "places", max(self.places, self.count))


@dataclass(frozen=True)
class StepPlan:
    """What every micro-step does, on every rank: which passes, in which order, with which rows."""

    requests: tuple[RowRequest, ...]
    rotations: tuple[Rotation, ...] = ()
    """Terms that take part in some micro-steps only; all others take part in every one."""

    @property
    def terms(self) -> tuple[str, ...]:
        """Loss terms."""
        return tuple(r.term for r in self.requests if not r.aside)

    @property
    def geometries(self) -> tuple[str, ...]:
        """Geometry of the pictures of each loss term."""
        return tuple(r.geometry for r in self.requests if not r.aside)

    @property
    def aside(self) -> tuple[RowRequest, ...]:
        """Rows that the learner does not run."""
        return tuple(r for r in self.requests if r.aside)

    @property
    def passes(self) -> tuple[str, ...]:
        """Names of the learner's passes that have rows, in the fixed order of `PASS_ORDER`."""
        asked = {r.pass_name for r in self.requests if not r.aside}
        return tuple(name for name in PASS_ORDER if name in asked)

    @property
    def streams(self) -> list[str]:
        """Names of the data streams that rows are drawn from."""
        return sorted({r.stream for r in self.requests if r.stream is not None})

    def of_pass(self, pass_name: str) -> tuple[RowRequest, ...]:
        """The rows of one of the learner's passes."""
        return tuple(r for r in self.requests if r.pass_name == pass_name and not r.aside)

    def alone(self, request: RowRequest) -> StepPlan:
        """A plan of one request: how rows aside are collated."""
        return StepPlan((dataclasses.replace(request, aside=False),))

    def takes_images(self, pass_name: str) -> bool:
        """Whether this pass runs the vision tower; decided by the plan so that all ranks agree."""
        return pass_name == UNDERSTAND or any(r.takes_source for r in self.of_pass(pass_name))

    def rows(self, pass_name: str) -> int:
        """B of the pass."""
        return sum(r.places for r in self.of_pass(pass_name))

    def rows_per_micro_step(self) -> int:
        """Rows of the learner's passes, resting ones included."""
        return sum(r.count for r in self.requests if not r.aside)

    def at(self, micro_step: int, seed: int) -> StepPlan:
        """The plan of one micro-step (counted from the first of the run): resting terms have no rows in it.

        A pass whose terms all rest keeps one dummy row: a trained parameter must take part in each backward.
        """
        resting = frozenset[str]().union(*(t.resting(micro_step, seed) for t in self.rotations))
        return self._without(resting) if resting else self

    def has_rows_in(self, term: str, part: StepPlan) -> bool:
        """Whether a term has its rows in `part`, the plan of a micro-step; False for the dummy row of a resting pass."""
        ours, theirs = ({r.term: r.stream is None for r in plan.requests} for plan in (self, part))
        return term in theirs and theirs[term] == ours[term]

    def widest(self, pass_name: str) -> StepPlan:
        """The plan of the micro-step with the most rows in this pass."""
        rows = {r.term: r.count for r in self.of_pass(pass_name)}
        resting = [frozenset(t.terms) - {max(t.terms, key=lambda term: rows.get(term, 0))} for t in self.rotations]
        return self._without(frozenset[str]().union(*resting))

    def _without(self, resting: frozenset[str]) -> StepPlan:
        kept = {name: [r for r in self.of_pass(name) if r.term not in resting] for name in PASS_ORDER}
        for name in self.passes:
            if not kept[name]:
                kept[name] = [dataclasses.replace(self.of_pass(name)[0], stream=None, count=1, shares=None, places=1)]
        return StepPlan((*(r for rows in kept.values() for r in rows), *self.aside))

    def with_spare_places(self) -> StepPlan:
        """The plan of ranks with different numbers of rows: a quarter more places, for the rows of the understand pass.

        Not for rows that share samples, whose other passes would be uneven then; nor aside. Rows of the generate pass cost
        about the same, and a dummy row as much as any.
        """
        shared = {r.shares for r in self.requests}

        def spared(request: RowRequest) -> RowRequest:
            fixed = request.stream is None or request.shares is not None or request.term in shared or request.aside
            if fixed or request.pass_name != UNDERSTAND:
                return request
            return dataclasses.replace(request, places=request.count + math.ceil(SPARE * request.count))

        return dataclasses.replace(self, requests=tuple(map(spared, self.requests)))

    def rows_at(self, pass_name: str, term: str) -> slice:
        """Range of the rows of a term within its pass."""
        first = 0
        for request in self.of_pass(pass_name):
            if request.term == term:
                return slice(first, first + request.places)
            first += request.places
        raise KeyError(f"The {pass_name} pass has no rows of {term}.")


def plan_from(requests: Iterable[RowRequest], rotations: Iterable[Rotation] = ()) -> StepPlan:
    """Merge the rows that all objectives request. Raises ConfigError for a term requested twice, or when there are no rows."""
    requests = tuple(r for r in requests if r.count > 0)
    names = [r.term for r in requests]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"Two objectives ask for the loss term {twice[0]!r}. Remove one of them from `objectives`.")
    unknown = sorted({r.pass_name for r in requests} - set(PASS_ORDER))
    if unknown:
        raise ConfigError(f"Unknown pass {unknown[0]!r}; passes are {', '.join(PASS_ORDER)}.")
    if all(r.aside for r in requests):
        raise ConfigError("No objective asks for rows. Give at least one row, for example objectives.understanding.rows=4.")
    return StepPlan(requests, tuple(rotations))
