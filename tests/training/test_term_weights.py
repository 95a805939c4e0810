"""Factors on the weights of terms: schedules, equal gradient norms, and what is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaunigame.config import AUTO, COSINE, LINEAR, WeightConfig, load_recipe
from megaunigame.errors import ConfigError
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rotation import Rotation
from megaunigame.training.term_weights import LEAST, MOST, TermWeights, scheduled
from tests.multi_process.launcher import REPOSITORY

ROWS = ("answers", "drawn", "painted")
TERMS = (*ROWS, "attention")
ASKED = [RowRequest(ROWS[0], UNDERSTAND, "s", 1), *(RowRequest(term, GENERATE, "s", 1) for term in ROWS[1:])]
PLAN = plan_from([*ASKED, RowRequest("replayed", UNDERSTAND, None, 1)])
RECIPE = str(REPOSITORY / "launch" / "recipes" / "tiny_unimrg.yaml")


def weights(**config) -> TermWeights:
    return TermWeights(PLAN, ["attention"], {term: WeightConfig(**given) for term, given in config.items()})


def test_ways_of_a_schedule():
    linear = weights(drawn={"start": 0.2, "end": 1.0, "steps": 4}, attention={"end": 0.5})
    assert [linear.factors(TERMS, step) for step in (0, 1, 3, 4, 99)] == [
        [1.0, pytest.approx(drawn), 1.0, 0.5] for drawn in (0.2, 0.4, 0.8, 1.0, 1.0)
    ]
    assert linear.metrics(1) == {"weight/drawn": pytest.approx(0.4), "weight/attention": 0.5}
    cosine = WeightConfig(start=2.0, end=0.0, steps=10, kind=COSINE)
    assert [scheduled(cosine, step) for step in (0, 5, 10)] == pytest.approx([2.0, 1.0, 0.0])


@given(
    start=st.floats(0, 10), end=st.floats(0, 10), steps=st.integers(0, 50), kind=st.sampled_from([LINEAR, COSINE]),
)  # fmt: skip
def test_a_schedule_is_monotonic_and_ends_at_its_end(start, end, steps, kind):
    values = [scheduled(WeightConfig(start, end, steps, kind), step) for step in range(steps + 2)]
    assert values[-1] == values[steps] == end and (steps == 0 or values[0] == pytest.approx(start))
    rising = sorted(values, reverse=start > end)
    assert values == pytest.approx(rising)


def test_equal_gradient_norms():
    both = weights(drawn={"kind": AUTO, "start": 0.5, "steps": 2}, painted={"kind": AUTO, "like": "answers"})
    own = {"answers": 2.0, "drawn": 1.0, "painted": 0.5}
    assert both.factors(TERMS, 0) == [1.0, 0.5, 1.0, 1.0]
    both.equalize({"answers": 0.1, "drawn": 4.0, "painted": 8.0}, own)
    assert both.equalizing == {"drawn": pytest.approx(0.05), "painted": pytest.approx(0.05)}
    assert both.factors(TERMS, 0) == [1.0, pytest.approx(0.025), pytest.approx(0.05), 1.0]  # the schedule comes on top
    both.equalize({"answers": 0.1, "drawn": 1.0}, own)
    assert both.equalizing["drawn"] == pytest.approx(math.sqrt(0.05 * 0.2)), "the mean of the logarithms"
    before = dict(both.equalizing)
    for nothing in ({}, {"answers": 0.0, "drawn": 1.0}, {"answers": 1.0, "drawn": 0.0}, {"answers": math.inf, "drawn": 1.0}):
        both.equalize(nothing, own)
        assert both.equalizing == before
    again = weights(drawn={"kind": AUTO})
    again.load_state_dict(both.state_dict())
    assert again.equalizing == {"drawn": before["drawn"]}


def test_the_norm_that_is_given_is_the_weighted_one_of_the_other_term():
    one = weights(answers={"start": 0.1, "end": 1.0, "steps": 9}, drawn={"kind": AUTO})
    one.equalize({"answers": 2.0, "drawn": 8.0}, {"answers": 1.0, "drawn": 1.0})
    assert one.factors(ROWS[:2], 0) == [pytest.approx(0.1), pytest.approx(0.1 * 0.25)]
    assert one.factors(ROWS[:2], 9) == [1.0, pytest.approx(0.25)]


def test_a_factor_has_limits():
    one = weights(drawn={"kind": AUTO})
    own = {"answers": 1.0, "drawn": 1.0}
    assert one.equalize({"answers": 1.0, "drawn": 1.0}, own) == []
    for norm in (1e-3, 1e-6, 1e-9):
        limited = one.equalize({"answers": 1.0, "drawn": norm}, own)
    assert one.equalizing["drawn"] == MOST and limited == ["drawn"]
    for _ in range(9):
        one.equalize({"answers": 1.0, "drawn": 1e9}, own)
    assert one.equalizing["drawn"] == LEAST


@pytest.mark.parametrize("term", ["answers", "drawn"])
def test_terms_that_take_turns_are_not_equalized(term):
    turns = plan_from(ASKED, [Rotation(("answers", "drawn"), "round_robin")])
    other = {"painted": {"kind": AUTO, "like": term}, term: {"end": 0.5}}
    for config in ({term: {"kind": AUTO, "like": "painted"}}, other):
        with pytest.raises(ConfigError, match=f"{term} takes turns with other tasks.*schedule=all"):
            TermWeights(turns, [], {name: WeightConfig(**given) for name, given in config.items()})
    TermWeights(turns, [], {term: WeightConfig(end=0.5)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"drawn": {"kind": AUTO, "like": "painted"}, "painted": {"kind": AUTO}}, "like=painted has kind=auto itself"),
        ({"replayed": {"kind": AUTO}}, "weights.replayed.kind=auto: .*'replayed'"),
        ({"drwn": {}}, "weights: .*'drwn'.*Did you mean 'drawn'"),
        ({"attention": {"kind": AUTO}}, r"weights.attention.kind=auto: .*'attention'.*answers, drawn, painted"),
        ({"drawn": {"kind": AUTO, "like": "attention"}}, "weights.drawn.like: .*'attention'"),
        ({term: {"kind": AUTO} for term in ROWS}, "weights.answers.like"),
    ],
)
def test_terms_that_do_not_exist(config, message):
    with pytest.raises(ConfigError, match=message):
        weights(**config)


def test_an_override_takes_a_weight_away():
    assert set(load_recipe(RECIPE, ["weights.depth=null"]).given_weights) == {"segmentation"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("weights.depth={start: -1}", "weights.depth.start must be at least 0; got -1"),
        ("weights.depth={kind: auto}", "weights.depth.kind=auto needs measured gradients. Type monitor.gradients=20"),
        ("weights.depth={like: pixel}", "weights.depth.like is for kind=auto"),
        ("weights.depth={kind: linaer}", "Did you mean 'linear'"),
        ("weights.depth={strat: 0}", "In weights.depth: .*'strat'.*Did you mean 'start'"),
        ("weights.depth=3", "'weights.depth' must be a mapping of settings; got 3"),
    ],
)
def test_settings_that_do_not_exist(override, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(RECIPE, [override])
