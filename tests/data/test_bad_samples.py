from __future__ import annotations

import logging

import pytest

from megaunigame.data.loading.bad_samples import BadSample, BadSampleCounter
from megaunigame.errors import DataError
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, StepPlan

PLAN = StepPlan(
    (
        RowRequest("answer", UNDERSTAND, "scenes", 3),
        RowRequest("pixel", GENERATE, "scenes", 1),
        RowRequest("text", UNDERSTAND, "chat", 2),
    )
)


def bad(key: str = "k", stream: str = "scenes", shard: str = "a.tar") -> BadSample:
    return BadSample(stream, key, shard, f"Sample {key!r}: broken.", 0)


def test_counts_are_sums_over_ranks():
    counter = BadSampleCounter(PLAN, 0.1)
    counter.add(PLAN, [bad()])
    counter.add(PLAN, [])
    assert counter.pending() == [9, 1, 4, 0]
    counter.merge([18, 2, 8, 1])  # as if another rank had seen another bad sample
    assert counter.reads == {"scenes": 18, "chat": 8} and counter.bad == {"scenes": 2, "chat": 1}
    assert counter.pending() == [0, 0, 0, 0]


@pytest.mark.parametrize(("fraction", "reads", "allowed"), [(0.0, 50, 0), (0.01, 5, 10), (0.01, 999, 10), (0.01, 5000, 50)])
def test_limit(fraction, reads, allowed):
    counter = BadSampleCounter(PLAN, fraction)
    counter.merge([reads, allowed, 0, 0])
    counter = BadSampleCounter(PLAN, fraction)
    with pytest.raises(DataError, match=rf"'scenes': {allowed + 1} of .*max_bad_fraction={fraction:g}"):
        counter.merge([reads, allowed + 1, 0, 0])


def test_verdict_names_the_worst_shard():
    counter = BadSampleCounter(PLAN, 0.0)
    counter.add(PLAN, [bad("x", shard="b.tar"), bad("y", shard="b.tar"), bad("z", shard="a.tar")])
    with pytest.raises(
        DataError, match=r"2 of those met by this rank are in b.tar.*Sample 'z'.*loader.max_bad_fraction to go on"
    ):
        counter.merge(counter.pending())


def test_a_key_is_logged_once(caplog):
    counter = BadSampleCounter(PLAN, 0.5)
    with caplog.at_level(logging.WARNING):
        for key in "aab":
            counter.add(PLAN, [bad(key)])
    assert [r.getMessage().split()[4] for r in caplog.records] == ["a", "b"]


def test_state_survives():
    counter = BadSampleCounter(PLAN, 0.01)
    counter.merge([4000, 39, 10, 0])
    other = BadSampleCounter(PLAN, 0.01)
    other.load_state_dict(counter.state_dict())
    other.merge([100, 2, 0, 0])
    assert other.reads["scenes"] == 4100
    with pytest.raises(DataError, match="42 of 4,100"):
        other.merge([0, 1, 0, 0])


def test_the_end_of_a_run_says_what_was_replaced():
    counter = BadSampleCounter(PLAN, 0.5)
    assert counter.as_text() == ""
    counter.add(PLAN, [bad("x", shard="b.tar")])
    counter.merge(counter.pending())
    assert counter.as_text().splitlines()[1] == (
        "  scenes: 1 of 5 samples replaced; the last on this rank, x of b.tar: Sample 'x': broken."
    )
