"""The rows of each term are counted, and a term that trains nothing ends the run."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megaunigame.config import LoaderConfig
from megaunigame.errors import DataError
from megaunigame.step.inputs import GenerateInputs, UnderstandInputs
from megaunigame.step.losses import PassTerm
from megaunigame.step.micro import MicroStep, Step
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, StepPlan, plan_from
from megaunigame.step.rotation import Rotation
from megaunigame.step.row_limits import FIRST_ROWS, enough_rows
from megaunigame.training.row_counts import RowCounter
from tests.passes import pass_inputs

ENOUGH = int(enough_rows(LoaderConfig().max_dummy_fraction))
ANSWERS = RowRequest("answers", UNDERSTAND, "s", 3)
REPLAYED = RowRequest("replayed", UNDERSTAND, None, 2)
DRAWN = RowRequest("drawn", GENERATE, "t", 2, needs="a picture and a `caption`")
PREPARED = RowRequest("prepared", GENERATE, "t", 2, aside=True)
PLAN = plan_from([ANSWERS, REPLAYED, DRAWN, PREPARED])
CPU = torch.device("cpu")


class Whole(PassTerm):
    """Counts the rows that were not cut."""

    def weight(self, step):
        return 1.0

    def counted(self, inputs):
        return (inputs.counts > 0) & ~inputs.cut

    def losses(self, inputs, output):
        raise NotImplementedError


def rows(kind, counts, cut=None, escaped=None):
    inputs = pass_inputs(kind, torch.ones(len(counts), 4, dtype=torch.long), counts=torch.tensor(counts, dtype=torch.float))
    return dataclasses.replace(
        inputs,
        cut=None if cut is None else torch.tensor(cut, dtype=torch.bool),
        escaped=None if escaped is None else torch.tensor(escaped),
    )


def step(*micro_steps) -> Step:
    return Step(0, 1e-3, list(micro_steps), 1e-3)


def micro(plan=PLAN, number=0) -> MicroStep:
    """2 of 3 answers (1 cut; the cut dummy does not count), 1 of 2 replayed, 1 of 2 drawn, 1 of 2 aside."""
    understand = rows(UnderstandInputs, [5, 0, 2, 0, 4], [1, 1, 0, 0, 0], [3, 0, 2, 0, 2])
    inputs = {UNDERSTAND: understand, GENERATE: rows(GenerateInputs, [7, 0])}
    return MicroStep(number, plan, inputs, {"prepared": rows(GenerateInputs, [9, 0], [1, 1])})


def counter(plan=PLAN, added=(), **limits) -> RowCounter:
    return RowCounter(plan, added, LoaderConfig(**limits), {"drawn": "painting"})


def per_term(numbers: list[int]) -> list[int]:
    """(wanted, filled, cut, escaped) of each term, none of whose rows have stored codes."""
    return [number for first in range(0, len(numbers), 4) for number in (*numbers[first : first + 4], 0)]


def test_rows_of_every_term_are_counted_over_micro_steps_and_ranks():
    count = counter(added=[Whole("whole", UNDERSTAND)])
    pending = count.pending(step(micro(), micro(number=1)), CPU)
    assert pending.tolist() == per_term([6, 4, 2, 10, 4, 2, 0, 4, 4, 2, 0, 0, 4, 2, 2, 0, 6, 4, 0, 0])
    count.merge((pending * 2 - torch.tensor([0, 0, 1, 0, 0] * 5)).clamp(min=0).int().tolist())  # as if of two ranks
    assert count.metrics()["rows/answers/wanted"] == 12 and count.metrics()["rows/answers/dummies"] == 4
    assert count.metrics()["rows/answers/cut"] == 3 and count.metrics()["rows/whole/filled"] == 8
    assert count.metrics()["rows/answers/escaped"] == 20
    assert "drawn: 4 of 8 filled, 4 dummies, 0 cut\n" in count.as_text()
    assert "answers: 8 of 12 filled, 4 dummies, 3 cut, 20 control tokens in texts kept as text" in count.as_text()


def test_rows_with_stored_codes_are_counted_without_dummies():
    drawn = dataclasses.replace(rows(GenerateInputs, [7, 0]), target_codes=torch.zeros(2, 3), target_coded=[True, True])
    asked = rows(UnderstandInputs, [5, 5, 0, 2, 0])
    asked = dataclasses.replace(asked, source_codes=torch.zeros(5, 1, 3), source_coded=[True, False, True, True, True])
    aside = dataclasses.replace(rows(GenerateInputs, [9, 9]), target_codes=torch.zeros(2, 3), target_coded=[False, True])
    count = counter()
    at = MicroStep(0, PLAN, {UNDERSTAND: asked, GENERATE: drawn}, {"prepared": aside})
    count.merge(count.pending(step(at, micro()), CPU).int().tolist())
    assert {name: total.coded for name, total in count.total.items()} == {
        "answers": 1,
        "replayed": 1,
        "drawn": 1,
        "prepared": 1,
    }
    assert "prepared: 3 of 4 filled, 1 dummies, 1 cut, 1 with stored codes" in count.as_text()
    count.load_state_dict({"drawn": [4, 4, 0, 0]})  # of a run before codes were counted
    assert count.total["drawn"].coded == 0


def test_places_that_were_dealt_no_sample_are_not_dummies():
    """Four places for three rows on average: one rank got four samples, the other two, one of which has nothing to answer."""
    plan = plan_from([ANSWERS]).with_spare_places()
    count = counter(plan, max_dummy_fraction=0.1)
    ranks = [rows(UnderstandInputs, counts) for counts in ([5, 2, 4, 1], [3, 0, 0, 0])]
    pending = [count.pending(step(MicroStep(0, plan, {UNDERSTAND: inputs})), CPU) for inputs in ranks]
    count.merge(sum(pending).int().tolist())
    assert count.metrics()["rows/answers/wanted"] == 6 and count.metrics()["rows/answers/dummies"] == 1


def test_a_resting_term_wants_no_rows():
    plan = plan_from([ANSWERS, DRAWN], [Rotation(("answers", "drawn"), "round_robin")])
    count = counter(plan)
    for number in range(4):
        at = plan.at(number, 0)
        kinds = {UNDERSTAND: UnderstandInputs, GENERATE: GenerateInputs}
        real = {r.term: float(r.stream is not None) for r in at.requests}
        inputs = {
            name: rows(kinds[name], [real[r.term] for r in at.of_pass(name) for _ in range(r.count)]) for name in at.passes
        }
        count.merge(count.pending(step(MicroStep(0, at, inputs)), CPU).int().tolist())
    assert count.state_dict() == {"answers": [6, 6, 0, 0, 0], "drawn": [4, 4, 0, 0, 0]}


def test_a_term_without_rows_ends_the_run_with_the_cause():
    count = counter()
    before = [3, 3, 0, 0, 2, 0, 0, 0, ENOUGH - 1, 0, 0, 0, 2, 1, 0, 0]
    count.merge(per_term(before))
    with pytest.raises(
        DataError, match=rf"'drawn' got none of its first {ENOUGH} rows.*'t' lack a picture and a `caption`"
    ) as e:
        count.merge(per_term([3, 3, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 1, 0, 0]))
    assert "objectives.painting to 0" in str(e.value) and "loader.max_dummy_fraction=1" in str(e.value)
    counter(max_dummy_fraction=1.0).merge(per_term([3, 3, 0, 0, 2, 0, 0, 0, 900, 0, 0, 0, 2, 1, 0, 0]))  # as the message says


@pytest.mark.parametrize(("fraction", "rows"), [(0, 8), (0.3, 8), (0.5, 8), (0.9, 53), (0.95, 108), (1, float("inf"))])
def test_enough_rows_fit_the_fraction_that_is_allowed(fraction, rows):
    assert enough_rows(fraction) == rows
    if 0 < fraction < 1:
        assert fraction**rows <= 0.004


@given(st.integers(0, 2**31 - 1))
def test_a_term_that_gets_as_many_rows_as_is_allowed_goes_on(seed):
    """One sample in ten has what the term needs: many dummies in a row are not a reason to stop."""
    filled = torch.rand(60, generator=torch.Generator().manual_seed(seed)) < 0.1
    filled[59] = True
    count = RowCounter(StepPlan((ANSWERS,)), (), LoaderConfig(max_dummy_fraction=0.95), {})
    for one in filled.tolist():
        count.merge(per_term([1, int(one), 0, 0]))


def test_rows_of_players_may_take_their_time_but_not_in_silence(caplog):
    count = counter()
    for _ in range(3):
        count.merge(per_term([3, 3, 0, 0, FIRST_ROWS, 0, 0, 0, 2, 2, 0, 0, 2, 2, 0, 0]))
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"The term replayed has had none of {FIRST_ROWS} rows so far: it trains nothing."]


def test_a_term_of_a_player_that_counts_no_row_ends_the_run():
    plan = plan_from([ANSWERS])
    count = RowCounter(plan, [Whole("whole", UNDERSTAND)], LoaderConfig(), {})
    with pytest.raises(DataError, match="'whole' got none of its first 9 rows.*leave its objective out"):
        count.merge(per_term([9, 9, 0, 0, 9, 0, 0, 0]))


@given(wanted=st.integers(1, 5000), share=st.floats(0, 1), fraction=st.floats(0, 0.999))
def test_the_limit_of_dummies(wanted, share, fraction):
    filled = max(1, round(wanted * share))
    count = RowCounter(StepPlan((ANSWERS,)), (), LoaderConfig(max_dummy_fraction=fraction), {})
    if wanted - filled > fraction * max(wanted, FIRST_ROWS):
        with pytest.raises(DataError, match=f"{wanted - filled:,} of {wanted:,} rows are dummies"):
            count.merge(per_term([wanted, filled, 0, 0]))
    else:
        count.merge(per_term([wanted, filled, 0, 0]))


def test_the_limit_of_cut_rows():
    """It is a share of the rows that are filled, not of those that were wanted."""
    count = RowCounter(StepPlan((ANSWERS,)), (), LoaderConfig(max_cut_fraction=0.25, max_dummy_fraction=0.9), {})
    count.merge(per_term([400, 200, 50, 0]))
    with pytest.raises(DataError, match=r"text of 51 of 200 rows did not fit.*max_cut_fraction=0.25.*Raise model.max_length"):
        count.merge(per_term([0, 0, 1, 0]))


def test_state_survives_other_terms():
    count = counter()
    count.merge(per_term([3, 2, 1, 0, 2, 0, 0, 0, 2, 2, 0, 0, 2, 2, 0, 0]))
    other = RowCounter(plan_from([ANSWERS, RowRequest("new", UNDERSTAND, "s", 1)]), (), LoaderConfig(), {})
    other.load_state_dict(count.state_dict())
    assert other.state_dict() == {"answers": [3, 2, 1, 0, 0], "new": [0, 0, 0, 0, 0]}
