"""What objectives ask for, and the plan it makes: which passes, in which order, with which rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from megaunigame.errors import ConfigError
from megaunigame.step.rotation import Turns

UNDERSTAND = "understand"
GENERATE = "generate"
ATTACK = "attack"
"""No pass of the learner: pictures that an adversary disturbs while the learner stands still."""
PASS_ORDER = (GENERATE, UNDERSTAND)
"""The learner's passes, in the order in which a micro-step makes them."""


@dataclass(frozen=True)
class RowRequest:
    """`count` rows of one loss term, in every micro-step of every rank."""

    term: str
    """Name of the loss term, unique in a plan; also the metric name `loss/<term>`."""
    pass_name: str
    """`understand`, `generate` or `attack`."""
    stream: str | None
    """Name of the data stream (a key of the recipe's `data`); None: the objective fills the rows itself, before the step."""
    count: int
    weight: float = 1.0
    takes_source: bool = False
    """Whether rows carry a source image through the understanding path (understand rows always do)."""
    shares: str | None = None
    """Another term of the same stream and count, whose samples these rows are made of; None: samples of their own.

    An attack that shares the samples of a generate term is redrawn by that term's rows, in the learner's own pass."""
    redraws: bool = False
    """Generate rows only: whether the picture to generate is the sample's own."""


@dataclass(frozen=True)
class StepPlan:
    """What every micro-step does, on every rank: which passes, in which order, with which rows."""

    requests: tuple[RowRequest, ...]
    turns: tuple[Turns, ...] = ()
    """Terms that take part in some micro-steps only; all others take part in each."""

    @property
    def terms(self) -> tuple[str, ...]:
        return tuple(r.term for r in self.requests)

    @property
    def passes(self) -> tuple[str, ...]:
        """Names of the learner's passes that have rows, in the fixed order of `PASS_ORDER`."""
        asked = {r.pass_name for r in self.requests}
        return tuple(name for name in PASS_ORDER if name in asked)

    @property
    def streams(self) -> list[str]:
        """Names of the data streams that rows are drawn from."""
        return sorted({r.stream for r in self.requests if r.stream is not None})

    def of_pass(self, pass_name: str) -> tuple[RowRequest, ...]:
        return tuple(r for r in self.requests if r.pass_name == pass_name)

    def takes_images(self, pass_name: str) -> bool:
        """Whether this pass runs the vision tower; decided by the plan so that all ranks agree."""
        return pass_name == UNDERSTAND or any(r.takes_source for r in self.of_pass(pass_name))

    def rows(self, pass_name: str) -> int:
        """B of the pass."""
        return sum(r.count for r in self.of_pass(pass_name))

    def rows_per_micro_step(self) -> int:
        """Rows of the learner's passes, resting ones included."""
        return sum(r.count for r in self.requests if r.pass_name in PASS_ORDER)

    def at(self, micro_step: int, seed: int) -> StepPlan:
        """The plan of one micro-step (counted from the first of the run): resting terms have no rows in it.

        A pass whose terms all rest keeps one dummy row: every pass is made in every micro-step, because a trained
        parameter must take part in each backward.
        """
        resting = frozenset[str]().union(*(t.resting(micro_step, seed) for t in self.turns))
        return self._without(resting) if resting else self

    def widest(self, pass_name: str) -> StepPlan:
        """The plan of a micro-step that gives this pass as many rows as any can."""
        rows = {r.term: r.count for r in self.of_pass(pass_name)}
        resting = [frozenset(t.terms) - {max(t.terms, key=lambda term: rows.get(term, 0))} for t in self.turns]
        return self._without(frozenset[str]().union(*resting))

    def _without(self, resting: frozenset[str]) -> StepPlan:
        kept = {name: [r for r in self.of_pass(name) if r.term not in resting] for name in (*PASS_ORDER, ATTACK)}
        for name in self.passes:
            if not kept[name]:
                kept[name] = [dataclasses.replace(self.of_pass(name)[0], stream=None, count=1, shares=None)]
        return StepPlan(tuple(r for rows in kept.values() for r in rows))

    @property
    def redrawn_by(self) -> str | None:
        """The generate term whose rows redraw the attacked pictures; None: the attack has rows of its own for it."""
        return next((r.shares for r in self.of_pass(ATTACK)), None)

    def slots(self, pass_name: str, term: str) -> slice:
        """Where the rows of a term lie among the rows of its pass."""
        first = 0
        for request in self.of_pass(pass_name):
            if request.term == term:
                return slice(first, first + request.count)
            first += request.count
        raise KeyError(f"The {pass_name} pass has no rows of {term}.")


def attack_plan(plan: StepPlan) -> StepPlan:
    """The attack rows of a plan as rows of the two passes they go through: redrawn first, then asked about.

    Where the learner's generate pass redraws them, it is that whole pass.
    """
    attacks = plan.of_pass(ATTACK)
    own = tuple(dataclasses.replace(r, pass_name=GENERATE) for r in attacks)
    redraw = own if plan.redrawn_by is None else plan.of_pass(GENERATE)
    question = (dataclasses.replace(r, term=f"{r.term} question", pass_name=UNDERSTAND, takes_source=True) for r in attacks)
    return StepPlan((*redraw, *question))


def plan_from(requests: Iterable[RowRequest], turns: Iterable[Turns] = ()) -> StepPlan:
    """Merge the rows all objectives ask for; a term asked for twice is an error of the recipe."""
    requests = tuple(r for r in requests if r.count > 0)
    names = [r.term for r in requests]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"Two objectives ask for the loss term {twice[0]!r}. Remove one of them from `objectives`.")
    known = (*PASS_ORDER, ATTACK)
    unknown = sorted({r.pass_name for r in requests} - set(known))
    if unknown:
        raise ConfigError(f"Unknown pass {unknown[0]!r}; passes are {', '.join(known)}.")
    if not any(r.pass_name in PASS_ORDER for r in requests):
        raise ConfigError("No objective asks for rows. Give at least one row, for example objectives.understanding.rows=4.")
    return StepPlan(requests, tuple(turns))
