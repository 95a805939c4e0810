"""Rows, passes and the step plan: the vocabulary every other file speaks.

Shape legend, used in every docstring of this package::

    B  rows of one pass in one micro-step of one rank
    S  sequence length after padding
    I  source images per row (>= 1 whenever the pass takes images)
    N  visual tokens of one image
    D  width of the language model
    V  codes of the image tokenizer

An objective asks for rows (:class:`RowRequest`), turns a decoded sample into a neutral row (:class:`UnderstandRow` or
:class:`GenerateRow`), the family's processor turns rows into tensors (:class:`PassInputs`), and the model answers with one
loss sum and one count per row (:class:`PassOutput`). All rows of a pass share one forward, so the number and the order of
forwards is a property of the plan and never of the data: under ZeRO-3 that is what keeps the ranks in lockstep.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megaunigame.errors import ConfigError
from megaunigame.turns import Turns

UNDERSTAND = "understand"
GENERATE = "generate"
ATTACK = "attack"
"""No pass of the learner: pictures that an adversary disturbs while the learner stands still."""
PASS_ORDER = (GENERATE, UNDERSTAND)
"""The learner's passes, in the order in which a micro-step makes them."""
IGNORE = -100


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


@dataclass
class UnderstandRow:
    """Images and a conversation; the loss falls on the answers."""

    images: list[Tensor]
    """uint8 (3, h, w) each; may be empty (text-only conversation)."""
    turns: list[tuple[str, str]]
    """(question, answer) pairs, without `<image>` markers."""
    independent: bool = False
    """True: every turn sees the images and itself only, so that no answer leaks into the next question."""


@dataclass
class GenerateRow:
    """A prompt, perhaps a source image, and the picture to generate."""

    prompt: str
    target: Tensor
    """uint8 (3, h, w)."""
    source: Tensor | None = None
    """uint8 (3, h, w), or None for text-to-image rows."""
    unconditional: bool = False
    """True: the condition is dropped (text and source together), as classifier-free guidance needs."""
    source_gradient: float = 1.0
    """Factor on the gradient that reaches the understanding path through the source."""


@dataclass
class AttackRow:
    """A picture under attack: how the model is asked to draw it again, and what is asked about the result."""

    redraw: GenerateRow | None
    """None: the learner's generate pass draws it, in the rows of the term whose samples are shared."""
    question: UnderstandRow
    text: str = ""
    """What the picture shows or is asked: a filter may compare it with the result."""


Row = UnderstandRow | GenerateRow | AttackRow


@dataclass(frozen=True)
class Taps:
    """Which attention of the language model a pass is to measure, from its queries Q to its keys K.

    understand: from the answer tokens of all turns to the image tokens; generate: from the tokens of the drawn image, the last
    excepted (nothing is read behind it), to the text before it.
    """

    layers: tuple[int, ...]
    """Indices of the layers, the first is 0."""
    rows: int = 0
    """At most this many queries of each row, drawn at random (the mean stays unbiased); 0: all."""
    exclude_bos: bool = False
    """Whether the first token of a row, on which much idle attention rests, is no key."""
    compat: bool = False
    """The keys of the released code: begin-of-image to the last image token but one; text without its last token."""


class AttentionShares(NamedTuple):
    """Attention that the queries of each row give to its keys, per tapped layer: mean over heads and queries, in [0, 1]."""

    keys: Tensor
    """(L, B) float32; differentiable. Means nothing for rows without queries or keys."""
    first: Tensor
    """(L, B) float32: the same to the first token of the row alone."""


@dataclass
class PassInputs:
    """The rows of one pass, as tensors. Row b belongs to loss term `terms[b]`."""

    tokens: Tensor
    """(B, S) int64."""
    attention: Tensor
    """(B, S) bool, False at padding."""
    terms: Tensor
    """(B,) int64: index into `StepPlan.terms`."""
    counts: Tensor
    """(B,) float32: loss positions of the row; 0 for a dummy row (no data for this slot)."""
    labels: Tensor | None = None
    """(B, S) int64, `IGNORE` where no loss falls (understand)."""
    label_positions: Tensor | None = None
    """(B, P) int64: positions of the labels of each row, ascending, then 0 (understand; see `megaunigame.labels`)."""
    front_padding: bool = True
    """False promises that no padding stands before a token, so that a plain causal mask hides all padding. Known on the
    host, where the rows are made; True is always right."""
    segments: Tensor | None = None
    """(B, S) int64: 0 = shared prefix, k = k-th independent turn, which sees the prefix and itself only. None: plain causal."""
    images: Tensor | None = None
    """(B, I, 3, H, W) float32, normalised as the understanding path expects."""
    image_valid: Tensor | None = None
    """(B, I) bool: False marks an unused image slot."""
    image_slots: Tensor | None = None
    """(B, S) bool: positions overwritten, in order, by the visual tokens of the row's valid images."""
    visual_delta: Tensor | None = None
    """(B, I, T, D) float32: added to the visual tokens of `images` before the language model reads them."""
    gradient_rows: slice | None = None
    """Where `images` require a gradient: the rows whose pictures do; None: any of them may. Known on the host."""
    source_gradient: Tensor | None = None
    """(B,) float32: factor on the gradient into the visual tokens of the row; None: 1 everywhere."""
    targets: Tensor | None = None
    """(B, 3, H, W) float32 in [-1, 1]: the pictures to generate."""
    intact: Tensor | None = None
    """(B,) bool: False for a row whose text was cut, or whose condition was dropped; None: all are intact."""
    taps: Taps | None = None
    """Attention to measure on the way; None: none."""
    keys: list[str] = field(default_factory=list)
    """Sample key per row, for error messages."""

    def to(self, device: torch.device) -> PassInputs:
        """A copy with every tensor on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in tensors.items() if isinstance(value, Tensor)
        }
        return dataclasses.replace(self, **moved)


@dataclass
class AttackInputs:
    """The rows of one attack pass: row b of both parts is the same sample."""

    redraw: PassInputs
    """As for the generate pass; its targets are the source pictures."""
    question: PassInputs
    """As for the understand pass, about the source pictures."""
    texts: list[str] = field(default_factory=list)
    """What each picture shows or is asked."""
    first_turns: list[tuple[str, str]] = field(default_factory=list)
    """The first question and answer of each row, for the report."""

    def to(self, device: torch.device) -> AttackInputs:
        return dataclasses.replace(self, redraw=self.redraw.to(device), question=self.question.to(device))


class PassOutput(NamedTuple):
    """What one pass returns. A named tuple, because the engine hooks the tensors of tuples and would miss a dataclass's."""

    loss_sum: Tensor
    """(B,) float32: summed (not averaged) loss of each row over its loss positions; 0 for dummy rows."""
    hidden: Tensor | None = None
    """(B, N, D): post-LM visual tokens that predict the target picture (generate)."""
    target: Tensor | None = None
    """What was generated towards: codes (B, N) or latents (generate)."""
    predictions: Tensor | None = None
    """(B, S) int64 greedy token predicted *for* each position (understand) or (B, N) codes (generate); only when asked."""
    attention: AttentionShares | None = None
    """What `PassInputs.taps` asked for."""


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
