"""A rank that is slow keeps the run going, and is named; one that is stopped ends it, and is named."""

from __future__ import annotations

import re

import pytest

from tests.faults.kills import LONGEST_LAUNCH
from tests.faults.moments import Moment
from tests.faults.worlds import everything, recipe

ENDS_WITHIN = 60.0
"""Seconds from the moment that a rank is stopped."""
SLOW_SECONDS = 2.0
"""Added to each of the two forwards of a step, which takes a fifth of a second in all."""


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.fault("a rank 20 times as slow as the others", does="the run goes on; a line names the slow rank", lost="")
def test_a_slow_rank_is_named(server, home, measured):
    settings = everything(home, 20, evaluation={"suites": {}}, checkpoint={"every": 100})
    launch = server.start(recipe(home, "slow", settings), 2, [Moment(1, "forward", 1, f"sleep {SLOW_SECONDS}")])
    codes = launch.wait(2 * LONGEST_LAUNCH)
    assert set(codes.values()) == {0}, launch.said()
    assert re.search(r"\brank 1\b.*\bslow", launch.everything()), launch.said()
    assert not re.search(r"\brank 0\b.*\bslow", launch.everything()), launch.said()


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.fault(
    "a rank is stopped (SIGSTOP) in a step",
    does="the other ranks end within a minute and name it",
    lost="work since the last save",
)
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named(server, home, measured, stopped):
    settings = everything(home, 200, evaluation={"suites": {}})
    launch = server.start(recipe(home, f"stopped-{stopped}", settings), 2, [Moment(stopped, "forward", 5, "SIGSTOP")])
    try:
        launch.wait_for_text("MOMENT", stopped, LONGEST_LAUNCH)
        begin = launch.now()
        other = launch.wait_for_first(ENDS_WITHIN)
        assert other == 1 - stopped and launch.codes[other] not in (0, 75), launch.said()
        assert re.search(rf"\brank {stopped}\b", launch.log(other)), launch.said()
        measured("ended after", launch.ended[other] - begin, "s")
    finally:
        launch.kill()
