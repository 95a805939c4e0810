"""A signal to one of two ranks in every phase of a run: all stop, nothing is lost, the next launch goes on to the same end."""

from __future__ import annotations

import pytest

from tests.multi_process import stopping
from tests.multi_process.launcher import run_ranks
from tests.multi_process.tiny_run import write_data, write_model, write_pictures

FAST = ["step before an evaluation", "sampling between", "save"]
STOPS = "all ranks stop together, save and exit with 75; the same command ends bit-equal to a run that was not stopped"


@pytest.fixture
def home(tmp_path):
    write_model(tmp_path / "model")
    write_data(tmp_path / "shards")
    write_pictures(tmp_path / "pictures")
    return tmp_path


def rounds(home, cases):
    said = run_ranks("tests.multi_process.stopping", 2, home, *cases, timeout=580)[0]
    reported = {line.split(":")[0] for line in said.splitlines() if ": interrupted by" in line}
    assert reported == set(cases)


@pytest.mark.fault("signal on one rank in a step that is followed by an evaluation", does=STOPS, lost="nothing")
@pytest.mark.fault("signal on one rank while pictures are drawn in an evaluation", does=STOPS, lost="the evaluation begun")
@pytest.mark.fault("signal on one rank, twice, during a save", does=STOPS, lost="nothing")
@pytest.mark.timeout(300)
def test_signals_in_a_step_an_evaluation_and_a_save(home):
    rounds(home, FAST)


@pytest.mark.faults
@pytest.mark.fault("signal on one rank in the dry run", does="all ranks stop together, exit code 75", lost="nothing")
@pytest.mark.fault("signal on one rank in the first or the last step, once or twice", does=STOPS, lost="nothing")
@pytest.mark.fault("signal on one rank in the last save", does=STOPS, lost="nothing")
@pytest.mark.fault("signal on one rank in the evaluation before, between or after", does=STOPS, lost="the evaluation begun")
@pytest.mark.timeout(600)
def test_signals_in_every_other_phase(home):
    rounds(home, [case for case in stopping.CASES if case not in FAST])
