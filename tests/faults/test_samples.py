"""No sample is lost or read twice when a run goes on with another number of ranks."""

from __future__ import annotations

import pytest

from tests.faults.kills import LONGEST_LAUNCH, SURVIVORS_END, newest_step
from tests.faults.moments import Moment
from tests.faults.sample_keys import steps_of
from tests.faults.worlds import recipe, run_folder, same_at_any_size

STEPS = 11
WORLDS = (1, 2, 4, 1)
"""Ranks of one launch after the other; all but the last are killed in the fourth step they make."""


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.fault(
    "killed in the middle of an epoch, and continued on 1, 2, 4 and again 1 ranks",
    does="every step reads the samples that it reads in a run without kills, in the same order, none lost and none twice",
    lost="work since the last save",
)
def test_the_samples_of_every_step_are_those_of_one_uninterrupted_run(server, home, measured):
    settings = same_at_any_size(home, STEPS)
    whole = server.start(recipe(home, "samples-whole", settings), 1, note_keys=True)
    assert set(whole.wait(LONGEST_LAUNCH).values()) == {0}, whole.said()
    expected = steps_of([server.keys_of(0)])
    assert sorted(expected) == list(range(STEPS)) and len({str(keys) for keys in expected.values()}) == STEPS

    command, run, last, seen = recipe(home, "samples", settings), run_folder(home, "samples"), len(WORLDS) - 1, set()
    for number, world in enumerate(WORLDS):
        begins = newest_step(run) or 0
        moments = [Moment(world - 1, "update", 4)] if number != last else []
        launch = server.start(command, world, moments, note_keys=True)
        try:
            launch.wait_for_first(LONGEST_LAUNCH)
            codes = launch.wait(SURVIVORS_END)
        finally:
            launch.kill()
        assert codes[world - 1] == (0 if number == last else -9), launch.said()
        steps = steps_of([server.keys_of(rank) for rank in range(world)])
        assert min(steps) == begins, (number, sorted(steps), begins)
        wrong = [step for step, keys in steps.items() if keys != expected[step]]
        assert wrong == [], (number, world, wrong)
        seen |= set(steps)
    assert seen == set(range(STEPS))
    measured("steps", STEPS)
