"""The plan of a step: which terms, which passes in which order, which rows where."""

from __future__ import annotations

import pytest

from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rotation import ROUND_ROBIN, Rotation

ASKED, HARD, SMALL, LARGE, ASIDE = (
    RowRequest("asked", UNDERSTAND, "s", 3),
    RowRequest("hard", UNDERSTAND, None, 2),
    RowRequest("small", GENERATE, "s", 1),
    RowRequest("large", GENERATE, "s", 4, takes_source=True),
    RowRequest("aside", GENERATE, "s", 9, aside=True),
)
PLAN = plan_from([ASKED, SMALL, HARD, ASIDE, LARGE])
ROTATING = plan_from([ASKED, SMALL, LARGE, ASIDE], [Rotation(("small", "large"), ROUND_ROBIN)])
TAKING_TURNS = plan_from([ASKED, SMALL], [Rotation(("asked", "small"), ROUND_ROBIN)])


def test_rows_aside_are_no_terms_of_the_loss():
    assert PLAN.terms == ("asked", "small", "hard", "large") and [r.term for r in PLAN.aside] == ["aside"]
    assert PLAN.rows_per_micro_step() == 10 and (PLAN.rows(UNDERSTAND), PLAN.rows(GENERATE)) == (5, 5)


def test_passes_have_one_order_whatever_the_order_of_the_requests():
    for requests in ([ASKED, SMALL], [SMALL, ASKED]):
        assert plan_from(requests).passes == (GENERATE, UNDERSTAND)
    assert plan_from([ASKED, ASIDE]).passes == (UNDERSTAND,)


def test_rows_of_a_term_follow_those_of_the_terms_before_it():
    assert (PLAN.rows_at(UNDERSTAND, "asked"), PLAN.rows_at(UNDERSTAND, "hard")) == (slice(0, 3), slice(3, 5))
    assert (PLAN.rows_at(GENERATE, "small"), PLAN.rows_at(GENERATE, "large")) == (slice(0, 1), slice(1, 5))
    with pytest.raises(KeyError, match="no rows of aside"):
        PLAN.rows_at(GENERATE, "aside")


def test_a_pass_takes_images_if_any_of_its_rows_does():
    assert PLAN.takes_images(GENERATE) and PLAN.takes_images(UNDERSTAND)
    assert not plan_from([SMALL]).takes_images(GENERATE)


def test_the_widest_micro_step_of_a_rotation_has_its_largest_term():
    widest = ROTATING.widest(GENERATE)
    assert [(r.term, r.count) for r in widest.of_pass(GENERATE)] == [("large", 4)] and widest.aside == ROTATING.aside


def test_a_pass_whose_terms_rest_keeps_one_row_that_nobody_fills_from_a_stream():
    for micro_step, active, resting in ((0, "asked", "small"), (1, "small", "asked")):
        part = TAKING_TURNS.at(micro_step, seed=0)
        assert part.passes == (GENERATE, UNDERSTAND)
        (dummy,) = [r for r in part.requests if r.term == resting]
        assert (dummy.stream, dummy.count) == (None, 1)
        assert TAKING_TURNS.has_rows_in(active, part) and not TAKING_TURNS.has_rows_in(resting, part)
    assert [r.term for r in ROTATING.at(0, seed=0).of_pass(GENERATE)] == ["small"]
