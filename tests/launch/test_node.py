"""launch/node.py: places of ranks, signals passed on, exit codes. The ranks are scripts that train nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from megaunigame.launching import OTHERS_WAIT_SECONDS
from megaunigame.parallel.team import POLL_SECONDS, SIGTERM_SECONDS, Team
from megaunigame.parallel.watch import GRACE_SECONDS
from tests.multi_process.launcher import REPOSITORY, run_script

RANK = """
import os, signal, sys, time
rank, behavior = os.environ["RANK"], sys.argv[1]
if behavior == "tell":
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    open(f"{sys.argv[2]}/{rank}", "w").write(" ".join(os.environ[name] for name in names))
elif behavior == "fails" and rank == "1":
    sys.exit(3)
elif behavior == "killed" and rank == "0":
    os.kill(os.getpid(), signal.SIGKILL)
elif behavior != "unready":
    def save(number, _):
        time.sleep(1.0)
        open(f"{sys.argv[2]}/{rank}", "w").write(signal.Signals(number).name)
        os._exit(75)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, save)
if behavior != "tell":
    open(f"{sys.argv[2]}/ready-{rank}", "w").close()
    time.sleep(60)
"""


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "rank.py"
    file.write_text(RANK)
    return file


def test_every_rank_has_its_place(script, tmp_path):
    places = ["--ranks", 2, "--nodes", 3, "--node", 1, "--address", "first", "--port", 1234]
    done = run_script("launch/node.py", *places, script, "tell", tmp_path)
    assert done.returncode == 0, done.stderr
    assert {n: (tmp_path / n).read_text() for n in "23"} == {"2": "2 0 6 2 first 1234", "3": "3 1 6 2 first 1234"}


def signaled(script: Path, folder: Path, behavior: str, number: signal.Signals) -> int:
    """The exit code of two ranks whose launcher alone gets the signal when both are there."""
    command = [sys.executable, "launch/node.py", "--ranks", "2", str(script), behavior, str(folder)]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    try:
        until = time.monotonic() + 30
        while len(list(folder.glob("ready-*"))) < 2:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(number)
        return process.wait(timeout=30)
    finally:
        process.kill()


@pytest.mark.fault("signal to launch/node.py", does="every rank gets it; exit code 75 when all have saved", lost="nothing")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_reaches_every_rank_which_saves_as_long_as_it_needs(script, tmp_path, number):
    assert signaled(script, tmp_path, "saves", number) == 75
    assert [(tmp_path / rank).read_text() for rank in "01"] == [number.name] * 2


def test_a_rank_that_does_not_listen_yet_is_interrupted_too(script, tmp_path):
    assert signaled(script, tmp_path, "unready", signal.SIGTERM) == 75


@pytest.mark.parametrize(("codes", "expected"), [((-15, -15), 143), ((-15, 1), 143), ((0, 0), 0)])
def test_ranks_that_save_nothing_end_with_the_code_of_the_signal(codes, expected):
    """As of `megaunigame evaluate --ranks 2`."""
    team = Team(saves=False)
    team.ranks = [SimpleNamespace(poll=lambda code=code: code, send_signal=lambda number: None) for code in codes]
    team.pass_on(signal.SIGTERM)
    assert team.wait() == expected


@pytest.mark.parametrize("behavior, code", [("fails", 3), ("killed", 137)])
def test_a_rank_that_fails_ends_the_others(script, tmp_path, behavior, code):
    """The other one is asked to end, which it does after a second."""
    shorter = (
        "import sys; sys.argv[0] = 'launch/node.py'; sys.path.insert(0, 'launch'); import node\n"
        "from megaunigame.parallel import team\nteam.SIGTERM_SECONDS, team.KILL_SECONDS = 0.5, 5\nnode.main(sys.argv[1:])"
    )
    began = time.monotonic()
    done = run_script("-c", shorter, "--ranks", 2, script, behavior, tmp_path)
    assert done.returncode == code, done.stderr
    assert time.monotonic() - began < 30


def test_a_rank_that_ignores_the_end_is_killed(tmp_path):
    script = tmp_path / "stubborn.py"
    script.write_text(
        "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "time.sleep(0.5)\nif os.environ['RANK'] == '0': os._exit(1)\ntime.sleep(60)"
    )
    shorter = (
        "import sys; sys.path.insert(0, 'launch'); import node\n"
        "from megaunigame.parallel import team\nteam.SIGTERM_SECONDS, team.KILL_SECONDS = 0.3, 0.6\nnode.main(sys.argv[1:])"
    )
    began = time.monotonic()
    assert run_script("-c", shorter, "--ranks", 2, script).returncode == 1
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("places", [["--ranks", 0], ["--ranks", 1, "--nodes", 2, "--node", 2]])
def test_an_impossible_place_is_refused(places):
    done = run_script("launch/node.py", *places, "x.py")
    assert done.returncode == 2 and "machines are numbered from 0" in done.stderr


ERRORS = """
import os, sys, time
from megaunigame.errors import ConfigError
from megaunigame.launching import run_to_exit
from megaunigame.parallel.interruption import SAVES, Interruption
stop, rank, (whose, phase, folder) = Interruption().listen(), os.environ["RANK"], sys.argv[1:]
stop.phase = phase
def main(_):
    open(f"{folder}/ready-{rank}", "w").close()
    while not all(os.path.exists(f"{folder}/ready-{other}") for other in "012"):
        time.sleep(0.05)
    if whose == "all" or whose == rank:
        raise ConfigError("the cause")
    time.sleep(60)
run_to_exit(main, [])
"""


@pytest.mark.parametrize("phase", ["starts", "saves"])
@pytest.mark.parametrize("whose, said", [("all", "ConfigError: the cause"), ("1", "rank 1: ConfigError: the cause")])
def test_an_error_of_all_ranks_is_said_once_and_one_of_a_single_rank_too(tmp_path, phase, whose, said):
    script = tmp_path / "errors.py"
    script.write_text(ERRORS)
    sooner = (
        "import sys; sys.path.insert(0, 'launch'); import node\nfrom megaunigame.parallel import team\n"
        "team.KILL_SECONDS = 5.5\nnode.main(sys.argv[1:])"
    )
    done = run_script("-c", sooner, "--ranks", 3, script, whose, phase, tmp_path)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and lines[0] == said, done.stderr
    others = lines[1:]
    if whose == "all" or phase == "saves":
        assert others == [line for line in others if "the run stops after the work at hand" in line]
    else:  # they had nothing to say but that they end
        assert all("ended by SIGTERM before the first step" in line and "another rank has failed" in line for line in others)


def test_the_delays_fit_each_other():
    assert SIGTERM_SECONDS + POLL_SECONDS + 1 < OTHERS_WAIT_SECONDS, "ranks with the same error are ended before they repeat it"
    assert OTHERS_WAIT_SECONDS + 1 < GRACE_SECONDS, "the exit code of a single rank's error counts"
