"""Signals to a job, as schedulers and Ctrl-C send them: every rank finishes its step, the run saves and ends.

To the process group of a `deepspeed` command, which does not pass a signal on to the ranks of the same machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from megaunigame.errors import Interrupted
from tests.multi_process.launcher import REPOSITORY, free_port, run_script
from tests.multi_process.tiny_run import write_data, write_model, write_recipe


def logged_steps(run: Path) -> list[int]:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


@pytest.fixture
def recipe(tmp_path):
    write_model(tmp_path / "model")
    write_data(tmp_path / "shards")
    return write_recipe(tmp_path / "recipe.yaml", tmp_path, schedule={"steps": 100_000}, loader={"workers": 1})


@contextlib.contextmanager
def training(run: Path, *launcher: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A launch that has come to step 3, in a process group of its own."""
    process = subprocess.Popen(
        list(map(str, launcher)), cwd=REPOSITORY, start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    try:
        until = time.monotonic() + 150
        while len(logged_steps(run)) < 3:
            assert process.poll() is None and time.monotonic() < until, "it never came to step 3"
            time.sleep(0.2)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of the signal."""
    status = Path("/proc", str(pid), "status").read_text()
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(caught >> (number - 1) & 1)


def latest(run: Path) -> str:
    file = run / "checkpoints" / "latest"
    return file.read_text().strip() if file.exists() else ""


@pytest.mark.ranks
@pytest.mark.fault("signal to one rank of a training", does="all ranks save that step; one line; exit code 75", lost="nothing")
@pytest.mark.timeout(240)
def test_a_polite_kill_of_one_rank_saves_the_step_it_interrupts(recipe, tmp_path):
    run = tmp_path / "run"
    node = [sys.executable, "launch/node.py", "--ranks", 2, "--port", free_port(), "launch/train.py", recipe]
    with training(run, *node) as process:
        ranks = psutil.Process(process.pid).children()
        (second,) = [rank for rank in ranks if rank.environ()["RANK"] == "1"]
        began = time.monotonic()
        second.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=60)
        seconds = time.monotonic() - began
    assert process.returncode == Interrupted.exit_code
    last = max(logged_steps(run))
    assert latest(run) == f"step-{last:08d}"
    how = f"interrupted by SIGUSR1 on rank 1 after step {last}; saved step-{last:08d} in"
    end = output.splitlines()[-1]
    assert re.fullmatch(rf"{how} \d+\.\d s; the same command goes on from there", end), end
    assert json.loads((run / "run.json").read_text())["finished"] is None
    print(f"{seconds:.1f} s from the signal to the end of the launcher")


@pytest.mark.faults
@pytest.mark.ranks
@pytest.mark.fault(
    "SIGTERM to the process group of the deepspeed command",
    does="all ranks save that step within its 30 seconds",
    lost="nothing",
)
@pytest.mark.timeout(240)
def test_a_polite_kill_of_the_deepspeed_command_saves(recipe, tmp_path):
    """Its ranks get the signal again from their launcher, which takes 30 seconds to kill them."""
    run = tmp_path / "run"
    deepspeed = Path(sys.executable).with_name("deepspeed")
    with training(run, deepspeed, "--num_gpus", "2", "--master_port", free_port(), "launch/train.py", recipe) as process:
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)  # until the last rank has closed its output
    last = max(logged_steps(run))
    assert latest(run) == f"step-{last:08d}"
    assert f"interrupted by SIGTERM after step {last}; saved" in output and "Traceback" not in output


@pytest.mark.fault("signal while the program is loaded", does="ends at once, exit code 75", lost="nothing")
@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_a_signal_during_start_up_ends_at_once(recipe, seconds):
    """As soon as it listens, and while torch is imported."""
    command = [sys.executable, "launch/train.py", str(recipe)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        until = time.monotonic() + 20
        while not catches(process.pid, signal.SIGUSR1):  # the last one it begins to listen to
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == Interrupted.exit_code
    assert errors.endswith("ended by SIGTERM before the first step: nothing to save; the same command starts again\n")
    assert "Traceback" not in errors


def test_ctrl_c_ends_a_command_that_saves_nothing_with_one_line():
    program = (
        "from megaunigame.launching import run_to_exit\n"
        "def main(arguments):\n    raise KeyboardInterrupt\nrun_to_exit(main, [])"
    )
    done = run_script("-c", program)
    assert done.returncode == 130 and done.stderr == "Ended by Ctrl-C.\n"


@pytest.mark.parametrize("rank, said", [("0", "interrupted by x\n"), ("1", "")])
def test_an_interrupted_run_says_so_once(rank, said):
    program = (
        "from megaunigame.errors import Interrupted\nfrom megaunigame.launching import run_to_exit\n"
        "def main(arguments):\n    raise Interrupted('interrupted by x')\nrun_to_exit(main, [])"
    )
    done = run_script("-c", program, env={**os.environ, "RANK": rank})
    assert (done.returncode, done.stdout, done.stderr) == (75, said, "")


@pytest.mark.timeout(120)
def test_an_error_of_the_program_ends_the_process(tmp_path):
    """With loader workers alive, too: they ignore the signal that an ordinary exit would send them."""
    write_model(tmp_path / "model")
    write_data(tmp_path / "shards")
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path, loader={"workers": 1})
    program = (
        "from megaunigame.command_line import run_command\n"
        "from megaunigame.engine.zero3 import Learner\n"
        "def fails(self, accept): raise RuntimeError('out of memory')\n"
        "Learner.update = fails\n"
        f"run_command('train', [{str(recipe)!r}])\n"
    )
    done = run_script("-c", program, timeout=100)
    assert done.returncode == 1 and "RuntimeError: out of memory" in done.stderr


def test_an_error_keeps_its_exit_code_when_nobody_reads_the_output():
    """As with `python launch/x.py ... | head`: the printed line cannot be flushed."""
    program = (
        "from megaunigame.errors import ConfigError\nfrom megaunigame.launching import run_to_exit\n"
        "def main(arguments):\n    print('x')\n    raise ConfigError('fix this')\nrun_to_exit(main, [])"
    )
    read, write = os.pipe()
    os.close(read)
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, env=buffered, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 2 and done.stderr.startswith("ConfigError: fix this")
