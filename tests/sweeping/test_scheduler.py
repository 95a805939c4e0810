"""Order, parallelism, restarts, failures and signals of a sweep, with a training script that trains nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megaunigame.errors import ConfigError
from megaunigame.sweeping.definition import load_sweep
from megaunigame.sweeping.machine import Machine, places, train_command
from megaunigame.sweeping.runs import Run, describe, plan_runs, state
from megaunigame.sweeping.scheduler import Outcome, Scheduler
from tests.multi_process.launcher import REPOSITORY
from tests.sweeping.fake_train import fake_command
from tests.sweeping.sweep_files import write_sweep

CPU = {"OMP_NUM_THREADS": "1"}


def carry_out(runs: list[Run], command: Callable[[Run], list[str]] = fake_command, jobs: int = 1) -> tuple[Outcome, str]:
    lines: list[str] = []
    outcome = Scheduler(runs, [CPU] * jobs, command, after_run=lambda: None, say=lines.append).carry_out()
    return outcome, "\n".join(lines)


def events(folder: Path) -> list[str]:
    return (folder / "out/events").read_text().splitlines()


@pytest.fixture
def runs(tmp_path) -> list[Run]:
    return plan_runs(load_sweep(write_sweep(tmp_path), [], []))


def test_one_at_a_time_goes_in_order(tmp_path, runs):
    outcome, text = carry_out(runs)
    names = ["plain/seed-0", "fast/seed-0", "plain/seed-1", "fast/seed-1"]
    assert events(tmp_path) == [f"{what} {name}" for name in names for what in ("start", "end")]
    assert outcome == Outcome() and outcome.complete
    assert "[4/4] fast/seed-1 " in text and "4 of 4 | ETA 0:00:00" in text
    assert "threads 1" in runs[0].log.read_text()


def test_never_more_at_a_time_than_places(tmp_path):
    runs = plan_runs(load_sweep(write_sweep(tmp_path), ["seeds=[0,1,2]"], []))
    carry_out(runs, lambda run: fake_command(run, seconds=0.3), jobs=2)
    at_once = most = 0
    for line in events(tmp_path):
        at_once += 1 if line.startswith("start") else -1
        most = max(most, at_once)
    assert most == 2 and len(events(tmp_path)) == 12


def test_every_place_is_used_and_given_back(runs):
    slots = [{"OMP_NUM_THREADS": "1", "PLACE": name} for name in "ab"]
    command = [sys.executable, "-c", "import os; print(os.environ['PLACE'])"]
    Scheduler(runs, slots, lambda _: command, after_run=lambda: None, say=lambda _: None).carry_out()
    seen = [run.log.read_text().splitlines()[-1] for run in runs]
    assert seen[:2] == ["a", "b"] and set(seen[2:]) <= {"a", "b"}


def test_a_half_done_sweep_starts_only_what_is_left(tmp_path, runs):
    carry_out(runs[:2])
    outcome, text = carry_out(runs)
    assert [line for line in events(tmp_path) if line.startswith("start")] == [f"start {run.name}" for run in runs]
    assert outcome.complete and "4 runs, 2 done before" in text
    assert [line.split()[1] for line in describe(runs).splitlines()] == ["done"] * 4
    carry_out(runs)
    assert len(events(tmp_path)) == 8, "nothing is left to start"


def test_a_failed_run_is_shown_and_does_not_stop_the_others(tmp_path, runs):
    outcome, text = carry_out(runs, lambda run: fake_command(run, "fails" if run is runs[0] else "good"))
    assert [run.name for run in outcome.failed] == ["plain/seed-0"] and not outcome.complete
    assert "exit code 1" in text and "| not enough memory" in text and "plain/seed-0" in outcome.describe()
    assert [state(run) for run in runs] == ["unfinished", "done", "done", "done"]
    outcome, text = carry_out(runs)
    assert outcome.complete and "[1/4] plain/seed-0  again" in text


def test_a_run_that_was_told_to_stop_is_not_done(runs):
    """Whatever its run.json says."""
    outcome, text = carry_out(runs[:1], lambda run: fake_command(run, "stops_early"))
    assert outcome.failed == runs[:1] and "before its last step, 4" in text
    assert state(runs[0]) == "unfinished"


EVALUATED = {"every": 2, "suites": {"q": {"suite": "questions", "shards": "held_out"}}}


@pytest.mark.parametrize(
    "common",
    [{"schedule": {"epochs": 2}}, {"early_stop": {"metric": "q/accuracy/mean"}, "evaluation": EVALUATED}],
    ids=["epochs", "early stop"],
)
def test_a_run_whose_last_step_is_not_known_is_done_when_it_says_so(tmp_path, common):
    runs = plan_runs(load_sweep(write_sweep(tmp_path, common=common), [], []))[:2]
    assert [run.steps for run in runs] == [0, 0]
    outcome, text = carry_out(runs, lambda run: fake_command(run, "good" if run is runs[0] else "interrupted"))
    assert outcome.failed == runs[1:] and [state(run) for run in runs] == ["done", "unfinished"]


def test_a_run_that_a_signal_ended_is_unfinished_also_after_its_last_step(runs):
    outcome, text = carry_out(runs[:1], lambda run: fake_command(run, "interrupted"))
    assert outcome.failed == runs[:1] and "a signal ended it; it is saved, and the same command continues it" in text
    assert state(runs[0]) == "unfinished"


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


SWEEP_THAT_WAITS = """
import sys
from megaunigame.sweeping.definition import load_sweep
from megaunigame.sweeping.runs import plan_runs
from megaunigame.sweeping.scheduler import Scheduler
from tests.sweeping.fake_train import fake_command
runs = plan_runs(load_sweep(sys.argv[1], [], []))
command = lambda run: fake_command(run, "waits")
outcome = Scheduler(runs, [{"OMP_NUM_THREADS": "1"}] * 2, command, lambda: None, print).carry_out()
print(outcome.describe())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_runs_save(tmp_path, runs, number):
    path = write_sweep(tmp_path)
    sweep = subprocess.Popen([sys.executable, "-c", SWEEP_THAT_WAITS, path], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: all((run.folder / "ready").exists() for run in runs[:2]))
    assert [state(run) for run in runs] == ["running", "running", "new", "new"]
    sweep.send_signal(number)
    text, _ = sweep.communicate(timeout=20)
    assert all((run.folder / "saved").exists() for run in runs[:2]), "it waits for the ranks, not for the launcher alone"
    assert [state(run) for run in runs] == ["unfinished", "unfinished", "new", "new"]
    assert sweep.returncode == 0 and f"Stopped by {number.name}." in text and "2 runs save and stop" in text
    assert carry_out(runs)[0].complete


def test_runs_of_a_killed_sweep_are_not_started_twice(tmp_path, runs):
    sweep = subprocess.Popen([sys.executable, "-c", SWEEP_THAT_WAITS, write_sweep(tmp_path)], cwd=REPOSITORY)
    wait_for(lambda: all((run.folder / "ready").exists() for run in runs[:2]))
    groups = subprocess.run(["ps", "-o", "pid=", "--ppid", str(sweep.pid)], capture_output=True, text=True).stdout.split()
    try:
        sweep.kill()
        sweep.wait()
        outcome, text = carry_out(runs)
        assert outcome.elsewhere == runs[:2] and "another process runs it" in text
        assert [state(run) for run in runs] == ["running", "running", "done", "done"]
    finally:
        for group in groups:
            os.killpg(int(group), signal.SIGKILL)
    wait_for(lambda: state(runs[0]) == state(runs[1]) == "unfinished")
    assert carry_out(runs)[0].complete


@pytest.mark.parametrize(
    "machine, ranks, jobs, expected",
    [
        (Machine(8, ()), 2, 0, [None] * 4),
        (Machine(2, ()), 4, 0, [None]),
        (Machine(2, ()), 1, 5, [None] * 5),
        (Machine(64, ("0", "1", "2", "3", "5")), 2, 0, ["0,1", "2,3"]),
        (Machine(64, ("4", "5", "6")), 1, 2, ["4", "5"]),
    ],
)
def test_places(machine, ranks, jobs, expected):
    found = places(machine, ranks, jobs)
    assert [place.get("CUDA_VISIBLE_DEVICES") for place in found] == expected
    assert all(("OMP_NUM_THREADS" in place) == (not machine.devices) for place in found)


@pytest.mark.parametrize("ranks, jobs, cure", [(4, 0, "ranks=2"), (1, 3, "jobs=2")])
def test_more_than_the_gpus_hold_is_refused(ranks, jobs, cure):
    with pytest.raises(ConfigError, match=cure):
        places(Machine(64, ("0", "1")), ranks, jobs)


def test_command_of_a_run(runs):
    script = os.path.relpath(REPOSITORY / "launch/train.py")
    assert train_command(runs[0], 2) == [sys.executable, script, runs[0].recipe, *runs[0].overrides, "--ranks", "2"]
