"""A run that is asked to stop in every phase, twice each time, ends as one that was never asked."""

from __future__ import annotations

import pytest

from tests.faults.kills import LONGEST_LAUNCH, check_resumed, newest_step
from tests.faults.moments import Moment
from tests.faults.test_kills import compare_bits, undisturbed
from tests.faults.worlds import everything, recipe, run_folder

SAVED = 75
"""Exit code: interrupted, saved, to be started again."""
PHASES = {
    "dry run": 1,
    "step": 1,
    "forward": 3,
    "backward": 2,
    "update": 1,
    "merge": 1,
    "save": 1,
    "file of a save": 1,
    "before latest": 1,
    "evaluation": 1,
}
"""Moment of the signals -> its number in the launch."""
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")
STEPS = 30


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.fault(
    "two signals, 20 ms apart, on one rank, in every phase: dry run, step, forward, backward, update, merge, save, evaluation",
    does="all ranks save and end with exit code 75; the same command goes on to the same bits",
    lost="",
)
def test_signals_in_every_phase_change_no_bit(server, home, measured):
    settings = everything(home, STEPS)
    whole = undisturbed(server, home, "unsignaled", settings, 2)
    command, run = recipe(home, "signaled", settings), run_folder(home, "signaled")
    longest = 0.0
    for number, (at, when) in enumerate(PHASES.items()):
        rank = 0 if at == "before latest" else number % 2
        moment = Moment(rank, at, when, SIGNALS[number % len(SIGNALS)], times=2)
        newest = newest_step(run)
        launch = server.start(command, 2, [moment])
        try:
            launch.wait_for_text("MOMENT", rank, LONGEST_LAUNCH)
            begin = launch.now()
            codes = launch.wait(LONGEST_LAUNCH)
        finally:
            launch.kill()
        assert set(codes.values()) == {SAVED}, f"{moment}\n{launch.said()}"
        check_resumed(launch, newest)
        assert newest_step(run) is not None or at == "dry run", f"{moment}: nothing was saved\n{launch.said()}"
        longest = max(longest, max(launch.ended.values()) - begin)
    launch = server.start(command, 2)
    codes = launch.wait(LONGEST_LAUNCH)
    assert set(codes.values()) == {0}, launch.said()
    measured("phases", len(PHASES))
    measured("saved and ended after", longest, "s")
    compare_bits(run, whole, STEPS)


@pytest.mark.faults
@pytest.mark.timeout(200)
@pytest.mark.fault("two signals during start-up and loading", does="ends, with nothing to save", lost="")
@pytest.mark.parametrize("name", SIGNALS)
def test_signals_during_start_up(server, home, name):
    settings = everything(home, 2, evaluation={"suites": {}})
    launch = server.start(
        recipe(home, f"start-{name}", settings), 2, [Moment(rank, "start-up", 1, name, times=2) for rank in (0, 1)]
    )
    codes = launch.wait(LONGEST_LAUNCH)
    assert 0 not in codes.values() and codes[0] == SAVED, launch.said()
