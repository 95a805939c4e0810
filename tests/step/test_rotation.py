"""Tasks in rotation: a pure function of the micro-step, one task at a time, every pass in every micro-step."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rotation import ROUND_ROBIN, SAMPLED, Rotation

TASKS = ("understanding", "depth", "pixel", "segmentation")
ROWS = {"understanding": 8, "depth": 2, "pixel": 5, "segmentation": 3}


def requests():
    mine = [RowRequest(t, UNDERSTAND if t == "understanding" else GENERATE, "train", ROWS[t], takes_source=True) for t in TASKS]
    return [*mine, RowRequest("clean", UNDERSTAND, "train", 4), RowRequest("source", UNDERSTAND, "train", 6, aside=True)]


def test_round_robin_is_the_order_of_the_recipe():
    rotation = Rotation(TASKS, ROUND_ROBIN)
    active = [set(TASKS) - rotation.resting(m, 0) for m in range(8)]
    assert active == [{t} for t in TASKS] * 2


def test_sampled_is_even_and_depends_on_seed_and_micro_step_alone():
    rotation = Rotation(TASKS, SAMPLED)
    drawn = [next(iter(set(TASKS) - rotation.resting(m, 3))) for m in range(4000)]
    assert all(abs(n / 4000 - 0.25) < 0.03 for n in Counter(drawn).values())
    assert drawn[:100] == [next(iter(set(TASKS) - rotation.resting(m, 3))) for m in range(100)]
    assert drawn[:100] != [next(iter(set(TASKS) - rotation.resting(m, 4))) for m in range(100)]


@pytest.mark.parametrize("order", [ROUND_ROBIN, SAMPLED])
@given(micro_step=st.integers(0, 10_000), seed=st.integers(0, 100))
def test_every_pass_is_made_in_every_micro_step(order, micro_step, seed):
    whole = plan_from(requests(), [Rotation(TASKS, order)])
    plan = whole.at(micro_step, seed)
    assert plan.passes == whole.passes and plan.aside == whole.aside
    real = {r.term: r.count for r in plan.requests if r.stream is not None}
    active = [t for t in TASKS if t in real]
    assert len(active) == 1 and real == {active[0]: ROWS[active[0]], "clean": 4, "source": 6}
    if active[0] == "understanding":
        (dummy,) = plan.of_pass(GENERATE)
        assert (dummy.count, dummy.stream) == (1, None), "a resting pass costs one dummy row"
    for name in whole.passes:
        assert plan.rows(name) <= whole.widest(name).rows(name)


def test_the_widest_micro_step_is_the_one_with_most_rows():
    whole = plan_from(requests(), [Rotation(TASKS, ROUND_ROBIN)])
    assert whole.widest(GENERATE).rows(GENERATE) == ROWS["pixel"] and whole.widest(UNDERSTAND).rows(UNDERSTAND) == 12
    always = plan_from(requests())
    assert always.widest(GENERATE).rows(GENERATE) == 10 and always.at(7, 0) is always
