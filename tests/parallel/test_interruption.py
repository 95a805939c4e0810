"""Signals: what counts as a second one, who hears them, and how ranks agree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR1

import pytest

from megaunigame.errors import Interrupted
from megaunigame.parallel.interruption import ENDS, SAME_SECONDS, SAVES, STARTS, Interruption
from megaunigame.parallel.outcome import OUTCOME
from tests.multi_process.launcher import REPOSITORY
from tests.worlds import OneRank, on_ranks

FIRST = 100.0
LATE = FIRST + SAME_SECONDS


def ended(phase: str, *signals: tuple[int, float]) -> list[int]:
    """The codes with which a process of this phase would have ended."""
    codes: list[int] = []
    stop = Interruption(lambda code, line: codes.append(code))
    stop.phase = phase
    for number, now in signals:
        stop.take(signal.Signals(number), now)
    return codes


@pytest.mark.fault("signal during start-up", does="ends at once, exit code 75", lost="nothing")
@pytest.mark.parametrize("number", [SIGTERM, SIGINT, SIGHUP, SIGUSR1])
def test_before_the_first_step_a_signal_ends_the_process(number):
    assert ended(STARTS, (number, FIRST)) == [75]


@pytest.mark.fault(
    "a second signal, 5 s or more after the first", does="ends at once, exit code 143 or 130", lost="steps since the checkpoint"
)
@pytest.mark.parametrize(
    "signals, codes",
    [
        ([(SIGTERM, FIRST)], []),
        ([(SIGTERM, FIRST), (SIGTERM, LATE - 0.1)], []),
        ([(SIGINT, FIRST), (SIGTERM, FIRST), (SIGINT, FIRST + 1)], []),
        ([(SIGTERM, FIRST), (SIGTERM, FIRST + 3), (SIGTERM, LATE)], [143]),
        ([(SIGTERM, FIRST), (SIGINT, LATE)], [130]),
        ([(SIGHUP, FIRST), (SIGTERM, FIRST + 1)], []),
        ([(SIGTERM, FIRST), (SIGHUP, LATE)], [129]),
        ([(SIGUSR1, FIRST), (SIGUSR1, LATE + 9)], []),
        ([(SIGUSR1, FIRST), (SIGTERM, LATE + 9)], []),
        ([(SIGTERM, FIRST), (SIGUSR1, LATE + 9)], []),
        ([(SIGUSR1, FIRST), (SIGTERM, LATE), (SIGTERM, LATE + SAME_SECONDS)], [143]),
    ],
)
def test_what_counts_as_a_second_signal(signals, codes):
    assert ended(SAVES, *signals) == codes


@pytest.fixture
def outcome():
    yield OUTCOME
    OUTCOME.clear()


@pytest.fixture
def said():
    """Exit codes and last lines with which `stop` would have ended the process."""
    return []


@pytest.fixture
def stop(said):
    return Interruption(lambda code, line: said.append((code, line)))


def test_a_signal_in_the_start_does_not_claim_to_be_a_user(stop, said, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    stop.take(SIGTERM, FIRST)
    ((code, line),) = said
    assert code == 75 and line.startswith("ended by SIGTERM before the first step: nothing to save; the same command starts")
    assert line.endswith("Launchers send SIGTERM also when another rank has failed: see its lines")
    stop.take(SIGINT, FIRST)
    assert "Launchers" not in said[1][1]


def test_a_signal_after_a_verdict_names_it(stop, said, outcome):
    outcome.verdict = "rank 3 on node7 (pid 12) has ended"
    stop.take(SIGTERM, FIRST)
    line = "ended by SIGTERM before the first step, because the run ends: rank 3 on node7 (pid 12) has ended"
    assert said == [(1, line)]


def test_a_run_that_has_a_verdict_does_not_say_that_it_saves(stop, said, outcome, capfd):
    stop.phase, outcome.verdict = SAVES, "rank 3 on node7 (pid 12) has ended"
    stop.take(SIGTERM, FIRST)
    assert said == [] and capfd.readouterr().err == ""


def test_the_end_of_a_launcher_is_named(stop, said, outcome):
    outcome.launcher_ended = True
    stop.take(SIGTERM, FIRST)
    assert said == [(75, "ended with its launcher before the first step: nothing to save; the same command starts again")]
    assert stop.source(OneRank()) == "the end of the launcher"


@pytest.mark.parametrize("phase", [STARTS, SAVES])
def test_a_process_that_fails_is_not_ended_by_a_sigterm(stop, said, outcome, phase, capfd):
    stop.phase, outcome.failed = phase, True
    stop.take(SIGTERM, FIRST)
    stop.take(SIGTERM, LATE)
    assert said == [] and outcome.dismissed and capfd.readouterr().err == ""


def test_the_last_moments_are_not_disturbed():
    assert ended(ENDS, (SIGTERM, FIRST), (SIGTERM, LATE)) == []


def test_the_first_signal_is_the_one_that_is_told():
    stop = Interruption(lambda code, line: None)
    stop.phase = SAVES
    assert stop.received is None
    stop.take(SIGUSR1, FIRST)
    stop.take(SIGTERM, FIRST)
    assert stop.received == SIGUSR1


@pytest.mark.parametrize(
    "asked, source", [({1}, "SIGTERM on rank 1"), ({0, 2}, "SIGTERM on ranks 0, 2"), ({0, 1, 2}, "SIGTERM"), (set(), None)]
)
def test_one_rank_alone_stops_all(asked, source):
    def rank(world):
        stop = Interruption()
        stop.phase = SAVES
        if world.rank in asked:
            stop.take(SIGTERM, FIRST)
        assert not stop.agreed, "a rank must not stop alone"
        left = False
        try:
            stop.leave_if_agreed(world)
        except Interrupted:
            left = True
        return left, stop.agreed, stop.source(world) if asked else None

    assert on_ranks(3, rank) == [(bool(asked), bool(asked), source)] * 3


PROGRAM = """
import hashlib, os, signal, sys, time
from megaunigame.parallel import interruption
interruption.SAME_SECONDS = 0.3
stop = interruption.Interruption().listen()
stop.phase = sys.argv[1]
if sys.argv[2] == "child" and os.fork() == 0:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    os._exit(0)
print("ready", flush=True)
if sys.argv[2] == "busy":
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # the main thread runs no Python for minutes, as in a collective
time.sleep(0.5)
print(stop.received, "torch" in sys.modules, flush=True)
"""


def told(phase: str, work: str, *signals: int, pause: float = 0.0) -> tuple[int, str, str]:
    """Exit code, output and errors of a process that gets these signals."""
    command = [sys.executable, "-c", PROGRAM, phase, work]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("RANK", None)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        for number in signals:
            process.send_signal(number)
            time.sleep(pause)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, ready + output, errors


def test_a_process_is_told_while_its_main_thread_is_busy():
    code, _, errors = told(STARTS, "busy", SIGTERM)
    assert code == 75
    assert errors == "ended by SIGTERM before the first step: nothing to save; the same command starts again\n"
    code, _, errors = told(SAVES, "busy", SIGINT, SIGINT, pause=0.4)
    first, second = errors.splitlines()
    assert code == 130 and first.startswith("SIGINT: the run stops") and second.startswith("SIGINT came a second time")


def test_a_signal_sets_a_flag_and_interrupts_nothing():
    code, output, errors = told(SAVES, "idle", SIGUSR1, SIGTERM, SIGINT)
    assert code == 0 and errors.count("\n") == 1, "one line, whatever launchers pass on"
    assert output.split("\n")[1].endswith("False"), "the ranks listen before torch is imported"
    assert "None" not in output


def test_a_signal_to_a_forked_worker_is_not_for_its_parent():
    code, output, errors = told(SAVES, "child")
    assert code == 0 and errors == "" and "None" in output


@pytest.mark.fault("the terminal of a run is closed", does="saves as after a SIGTERM, exit code 75", lost="nothing")
def test_after_the_end_of_its_terminal_a_run_goes_on_to_save(tmp_path):
    saves = (
        "import os, sys, time\nfrom megaunigame.parallel.interruption import SAVES, Interruption\n"
        "stop = Interruption().listen()\nstop.phase = SAVES\nprint('ready', flush=True)\n"
        "while stop.received is None: time.sleep(0.01)\n"
        "time.sleep(0.2)\nprint('saved', flush=True)\nprint('saved', file=sys.stderr, flush=True)\n"
        "open(sys.argv[1], 'w').write(stop.received.name)"
    )
    in_a_terminal = (
        "import os, pty, sys\nprocess, terminal = pty.fork()\n"
        "if process == 0: os.execv(sys.executable, [sys.executable, '-c', *sys.argv[1:]])\n"
        "said = b''\nwhile b'\\n' not in said: said += os.read(terminal, 100)\n"  # else the line is cut, which is an error
        "assert b'ready' in said, said\nos.close(terminal)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))"
    )
    command = [sys.executable, "-c", in_a_terminal, saves, str(tmp_path / "saved")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=60)
    assert done.returncode == 0 and (tmp_path / "saved").read_text() == "SIGHUP"


@pytest.mark.fault(
    "the terminal of a run is closed, whose output goes through a pipe (`| tee log`)",
    does="saves as after a SIGTERM, exit code 75",
    lost="nothing",
)
@pytest.mark.parametrize("ends", [0, 0.5], ids=["reader first", "reader later"])
def test_after_the_end_of_the_reader_of_its_output_a_run_goes_on_to_save(tmp_path, ends):
    saves = (
        "import os, sys, time\nfrom megaunigame.errors import Interrupted\nfrom megaunigame.launching import run_to_exit\n"
        "from megaunigame.parallel.interruption import SAVES, Interruption\n"
        "def main(_):\n"
        "    stop = Interruption().listen()\n    stop.phase = SAVES\n    print('ready', flush=True)\n"
        "    while stop.received is None: time.sleep(0.01)\n"
        "    time.sleep(1)\n    print('saved', flush=True)\n    print('saved', file=sys.stderr, flush=True)\n"
        "    open(sys.argv[1], 'w').write(stop.received.name)\n    raise Interrupted('interrupted')\n"
        "run_to_exit(main, [])"
    )
    run = subprocess.Popen(
        [sys.executable, "-u", "-c", saves, str(tmp_path / "saved")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert run.stdout is not None and b"ready" in run.stdout.readline()
    if not ends:
        run.stdout.close()
    run.send_signal(SIGHUP)
    if ends:
        time.sleep(ends)
        run.stdout.close()
    assert run.wait(60) == 75 and (tmp_path / "saved").read_text() == "SIGHUP"


def test_a_run_that_was_told_to_outlive_its_terminal_does():
    program = "from megaunigame.parallel.interruption import heard_signals; print([n.name for n in heard_signals()])"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for start, hears in (("", True), ("trap '' HUP; ", False)):
        command = ["bash", "-c", f'{start}"$0" -c "$1"', sys.executable, program]
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert ("SIGHUP" in output) == hears and "SIGTERM" in output
