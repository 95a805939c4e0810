"""Ranks that hang, stop, die, disagree or do not come: who says what, and when. One launch; see watched_ranks.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.multi_process.launcher import REPOSITORY
from tests.parallel.watched_ranks import FAULTS, LOST_SECONDS, RANKS

pytestmark = pytest.mark.ranks
CASES = (*FAULTS, "evaluation hangs", "report hangs", "disagree", "differ", "misses", "port taken")


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("watched")
    done = subprocess.run(
        [sys.executable, "-m", "tests.parallel.watched_ranks", str(home), *CASES],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return home


def of(said: Path, case: str, rank: int) -> str:
    return (said / case / f"rank_{rank}.out").read_text()


def ended(said: Path, case: str) -> list[int]:
    """Exit codes."""
    return [json.loads((said / case / f"rank_{rank}.code").read_text())["code"] for rank in range(RANKS)]


def seconds(said: Path, case: str) -> float:
    """Until the last rank had ended."""
    return max(json.loads((said / case / f"rank_{rank}.code").read_text())["seconds"] for rank in range(RANKS))


@pytest.mark.fault(
    "a rank hangs (data loader, disk)",
    does="all ranks end with its rank, host, phase and step",
    lost="since the newest checkpoint",
)
def test_a_rank_that_hangs_is_named_by_all_that_print(said):
    named = r"rank 1 on \S+ \(pid \d+\) has been in 'data' of step 812 for \d+ s; ranks 0, 2 wait in 'agree' of step 812\."
    assert ended(said, "stuck") == [1, 1, 1]
    # The culprit's end may break the collective of rank 0 before its watchdog speaks: then its main thread says the same.
    assert re.search(rf"(rank 0 on \S+ \(pid \d+\) ends the run|LostRankError): {named}", of(said, "stuck", 0))
    assert re.search(rf"rank 1 on \S+ \(pid \d+\) ends the run: {named}", of(said, "stuck", 1))
    assert "in never_ends" in of(said, "stuck", 1), "the culprit's console does not show where it hangs"
    for rank, where in enumerate(["all_reduce", "never_ends", "all_reduce"]):
        assert where in (said / "stuck" / f"rank_{rank:05d}.stacks").read_text()


@pytest.mark.fault(
    "a rank hangs in an evaluation", does="all ranks end with its name and phase", lost="since the newest checkpoint"
)
def test_a_rank_that_hangs_outside_of_a_step_is_named(said):
    named = r"rank 1 on \S+ \(pid \d+\) has been in 'evaluation' after step 0 for \d+ s; ranks 0, 2 wait in 'evaluation'"
    assert ended(said, "evaluation hangs") == [1, 1, 1]
    assert re.search(named, of(said, "evaluation hangs", 0)), of(said, "evaluation hangs", 0)


@pytest.mark.fault("the disk hangs in the report", does="all ranks end with the name of rank 0", lost="the report")
def test_a_report_that_hangs_is_noticed(said):
    named = r"rank 0 on \S+ \(pid \d+\) has been in 'report' of step 812 for \d+ s; ranks 1-2 wait in 'start-up' after step 812"
    assert ended(said, "report hangs") == [1, 1, 1]
    assert re.search(named, of(said, "report hangs", 0)), of(said, "report hangs", 0)


@pytest.mark.fault("SIGSTOP of a rank", does="the others end with its name", lost="since the newest checkpoint")
@pytest.mark.parametrize(("case", "rank", "reporter"), [("stopped", 2, 0), ("first stopped", 0, 1)])
def test_a_stopped_rank_is_named_and_its_state(said, case, rank, reporter):
    assert ended(said, case) == [-9 if r == rank else 1 for r in range(RANKS)]
    text = of(said, case, reporter)
    assert re.search(rf"ends the run: rank {rank} on \S+ \(pid \d+\) (has not been heard|cannot be reached) for", text), text
    assert "is stopped (SIGSTOP, or a debugger)" in text
    assert seconds(said, case) < 5 * LOST_SECONDS


@pytest.mark.fault("kill -9 of a rank", does="the others end with its name", lost="since the newest checkpoint")
def test_a_killed_rank_is_named_instead_of_a_traceback(said):
    assert ended(said, "killed") == [1, -9, 1]
    texts = [of(said, "killed", rank) for rank in (0, 2)]
    # Of a rank, the main thread or the watchdog is first; a rank that was told by another one may end without a word.
    assert any(re.search(r"(LostRankError|ends the run): rank 1 on \S+ \(pid \d+\) has ended", text) for text in texts)
    assert not any("RuntimeError" in text for text in texts)
    for rank in (0, 2):  # the network ended their collective: the stack is that of its error
        assert "all_reduce" in (said / "killed" / f"rank_{rank:05d}.stacks").read_text()
    assert seconds(said, "killed") < LOST_SECONDS * 3


@pytest.mark.fault(
    "an error of one rank alone", does="the other ranks end with its rank and error", lost="since the newest checkpoint"
)
@pytest.mark.parametrize(("case", "faulty"), [("raises", 2), ("first raises", 0)])
def test_the_error_of_one_rank_is_told_to_all(said, case, faulty):
    assert ended(said, case) == [1, 1, 1]
    for rank in {0, 1, 2} - {faulty}:
        named = rf"LostRankError: rank {faulty} on \S+ \(pid \d+\) ended with ValueError: a bug of one rank"
        assert re.search(named, of(said, case, rank)), of(said, case, rank)
    assert "Traceback" in of(said, case, faulty)
    assert of(said, case, faulty).strip().endswith("ValueError: a bug of one rank")


def test_a_slow_rank_and_ranks_that_leave_early_end_nothing(said):
    assert ended(said, "slow") == ended(said, "fine") == [0] * RANKS
    lines = [line for case in ("slow", "fine") for rank in range(RANKS) for line in of(said, case, rank).splitlines()]
    assert [line for line in lines if "[c10d]" not in line] == [], "torch warns where the machine does not know its own name"


@pytest.mark.fault(
    "ranks with different plans of a step", does="LockstepError on all, before the step", lost="nothing of the step"
)
def test_ranks_with_different_steps_all_raise_the_same(said):
    assert ended(said, "disagree") == [2, 2, 2]
    for rank in range(RANKS):
        assert "ranks 0-1: step 201, lr 0.1; rank 2: step 202, lr 0.1." in of(said, "disagree", rank)
        assert "LockstepError" in of(said, "disagree", rank)


@pytest.mark.fault("nodes with other packages or settings", does="ConfigError before anything is loaded", lost="nothing")
def test_ranks_that_are_not_the_same_all_raise_the_same(said):
    assert ended(said, "differ") == [2, 2, 2]
    for rank in range(RANKS):
        assert re.search(r"optimizer\.lr is 1e-5 on rank 1 \(\S+\), 2e-5 on rank 0 \(", of(said, "differ", rank))
        assert "torch" not in of(said, "differ", rank)


@pytest.mark.fault("a rank never comes", does="MeetingError after engine.timeout_minutes, with its number", lost="nothing")
def test_a_rank_that_never_comes_is_missed_by_number(said):
    assert ended(said, "misses") == [1, 0, 1]
    assert "MeetingError: After 16 s (engine.timeout_minutes), 2 of 3 ranks have come; rank 1 has not." in of(said, "misses", 0)
    assert "MeetingError" in of(said, "misses", 2)


@pytest.mark.fault("the port is taken", does="MeetingError naming the process, and a free port", lost="nothing")
def test_a_taken_port_is_named_with_its_process_and_a_free_one(said):
    assert ended(said, "port taken") == [0, 0, 0], of(said, "port taken", 2)
    text = of(said, "port taken", 2)  # torch may say more, in between
    assert re.search(r"as rank 0: MeetingError: Port \d+ of \S+, .* in use by pid \d+ \(\S*python", text)
    assert re.search(r"--master_port (\d+) \.\.\., torchrun --master-port \1", text)
    assert re.search(r"as rank 1: MeetingError: Port \d+, .* by a run whose ranks are all there", text)
    assert re.search(r"met at \d+", of(said, "port taken", 0)) and re.search(r"met at \d+", of(said, "port taken", 1))
