"""Counts the rows of every loss term, and ends the run when a term gets no rows, or too few whole ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from megaunigame.config import LoaderConfig
from megaunigame.errors import DataError
from megaunigame.monitoring import names
from megaunigame.step.losses import PassTerm
from megaunigame.step.micro import MicroStep, Step
from megaunigame.step.requests import RowRequest, StepPlan
from megaunigame.step.row_limits import FIRST_ROWS, enough_rows

log = logging.getLogger(__name__)


@dataclass
class RowCount:
    """Rows of one term."""

    wanted: int = 0
    """Planned, without the micro-steps in which the term rests."""
    filled: int = 0
    """With a loss: the others are dummies."""
    cut: int = 0
    """Filled, but some of the text did not fit into model.max_length."""
    escaped: int = 0
    """Control tokens that were written in the texts of its rows, and stayed text."""
    coded: int = 0
    """Filled, with stored codes (see `PassInputs.coded`)."""

    @property
    def dummies(self) -> int:
        return self.wanted - self.filled

    def __add__(self, other: RowCount) -> RowCount:
        return RowCount(*(ours + theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True)))


NUMBERS = len(astuple(RowCount()))


class RowCounter:
    """Rows wanted, filled and cut, and escaped tokens, per term and over all ranks.

    Counted are the terms of the plan, rows aside, and the terms that players add over rows of others (a row is wanted when
    it is there at all, and filled when the term counts it). In every step the trainer sums `pending` over the ranks and
    passes the sums to `merge`, which raises DataError on all ranks.
    """

    def __init__(self, plan: StepPlan, added: Sequence[PassTerm], limits: LoaderConfig, objective_of: dict[str, str]):
        """`objective_of`: term of the plan -> key of its objective in the recipe, for messages."""
        self.plan, self.added, self.limits, self.objective_of = plan, tuple(added), limits, objective_of
        self.requests = {request.term: request for request in plan.requests}
        self.names = (*self.requests, *(term.term for term in added))
        self.total = {name: RowCount() for name in self.names}
        """Since the first step of the run, over all ranks, as of the last `merge`."""
        self.last = {name: RowCount() for name in self.names}
        """In the step of the last `merge`."""
        self._warned: set[str] = set()

    def pending(self, step: Step, device: torch.device) -> Tensor:
        """(5 T,) float64: (wanted, filled, cut, escaped, coded) per term, of this step on this rank.

        Does not wait for the device. Call it after the passes: players fill rows, too.
        """
        counts = {name: torch.zeros(NUMBERS, dtype=torch.float64, device=device) for name in self.names}
        for micro in step.micro_steps:
            for request in micro.plan.requests:
                if self.plan.has_rows_in(request.term, micro.plan):
                    counts[request.term] += _counted(micro, request).to(device, non_blocking=True)
            for term in self.added:
                inputs = micro.inputs[term.pass_name]
                there, counted = term.meant(inputs).sum(), term.counted(inputs).sum()
                none = torch.zeros_like(counted)
                counts[term.term] += torch.stack([there, counted, none, none, none]).double()
        return torch.cat(list(counts.values()))

    def merge(self, all_ranks: Sequence[int]) -> None:
        """Add the sums of `pending` over all ranks. Raises DataError on every rank for a term without rows."""
        for place, name in enumerate(self.names):
            self.last[name] = RowCount(*(int(number) for number in all_ranks[NUMBERS * place : NUMBERS * (place + 1)]))
            self.total[name] += self.last[name]
        for name, total in self.total.items():
            self._check(name, total)

    def _check(self, name: str, total: RowCount) -> None:
        request, limits = self.requests.get(name), self.limits
        filled_by_player = request is not None and request.stream is None
        nothing = total.filled == 0
        # A player needs time to make its first rows.
        if filled_by_player or (nothing and limits.max_dummy_fraction >= 1):
            if nothing and total.wanted >= FIRST_ROWS and name not in self._warned:
                self._warned.add(name)
                log.warning("The term %s has had none of %d rows so far: it trains nothing.", name, total.wanted)
        elif nothing and total.wanted >= enough_rows(limits.max_dummy_fraction):
            raise DataError(f"The term {name!r} got none of its first {total.wanted} rows. {self._cause(name)}")
        elif request is not None and total.dummies > limits.max_dummy_fraction * max(total.wanted, FIRST_ROWS):
            raise DataError(
                f"The term {name!r}: {total.dummies:,} of {total.wanted:,} rows are dummies, more than "
                f"loader.max_dummy_fraction={limits.max_dummy_fraction:g} allows of at least {FIRST_ROWS}. {self._cause(name)}"
            )
        if total.cut > limits.max_cut_fraction * max(total.filled, FIRST_ROWS):
            raise DataError(
                f"The term {name!r}: the text of {total.cut:,} of {total.filled:,} rows did not fit and was cut, more than "
                f"loader.max_cut_fraction={limits.max_cut_fraction:g} allows of at least {FIRST_ROWS}. "
                "Raise model.max_length, leave long samples out, or raise loader.max_cut_fraction to go on with cut rows."
            )

    def _cause(self, name: str) -> str:
        request = self.requests.get(name)
        if request is None:
            return "None of the rows it looks at can be counted. Look at the metrics rows/*/cut, or leave its objective out."
        needs = request.needs or "what its rows are made of"
        return (
            f"The samples of stream {request.stream!r} lack {needs}. Give shards that have it, set the number of these rows in "
            f"objectives.{self.objective_of.get(name, '...')} to 0, or type loader.max_dummy_fraction=1 to go on without them. "
            "`megaunigame prepare stats SHARDS --for RECIPE` shows beforehand what a recipe finds."
        )

    def metrics(self) -> dict[str, float]:
        """The rows of the last step, over all ranks."""
        return {names.rows(name, what): getattr(count, what) for name, count in self.last.items() for what in names.ROW_COUNTS}

    def as_text(self) -> str:
        """A line per term about the whole run."""
        lines = [f"  {name}: {_described(count)}" for name, count in self.total.items()]
        return "\n".join(["rows of the run, by term", *lines])

    def state_dict(self) -> dict[str, list[int]]:
        """Totals over all ranks; valid for any number of ranks."""
        return {name: list(astuple(count)) for name, count in self.total.items()}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        """Terms new in this recipe start at 0; terms no longer in it are dropped."""
        for name, numbers in state.items():
            if name in self.total:
                self.total[name] = RowCount(*numbers)


def _described(count: RowCount) -> str:
    rows = f"{count.filled:,} of {count.wanted:,} filled, {count.dummies:,} dummies, {count.cut:,} cut"
    if count.escaped:
        rows = f"{rows}, {count.escaped:,} control tokens in texts kept as text"
    return f"{rows}, {count.coded:,} with stored codes" if count.coded else rows


def _counted(micro: MicroStep, request: RowRequest) -> Tensor:
    """(5,) float64: rows wanted, filled and cut, escaped tokens, rows with stored codes."""
    if request.aside:
        inputs, at = micro.aside[request.term], slice(None)
    else:
        inputs, at = micro.inputs[request.pass_name], micro.plan.rows_at(request.pass_name, request.term)
    filled = inputs.counts[at] > 0
    cut = torch.zeros_like(filled) if inputs.cut is None else filled & inputs.cut[at]
    escaped = torch.zeros_like(filled) if inputs.escaped is None else inputs.escaped[at]
    coded = torch.zeros_like(filled)
    if inputs.coded:
        coded = filled & torch.tensor(inputs.coded[at]).to(filled.device, non_blocking=True)
    found = torch.stack([part.double() for part in (filled, cut, escaped, coded)]).sum(1)
    return torch.cat(
        [found.new_full((1,), request.count), found]
    )  # over all ranks: a place that was dealt no sample is not wanted
