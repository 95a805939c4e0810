"""SIGTERM to the job, as schedulers and Ctrl-C send it: every rank finishes its step, the run saves and ends.

To its process group: the `deepspeed` command does not pass a signal on to the ranks of the same machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.multi_process.launcher import REPOSITORY, free_port, run_script
from tests.multi_process.tiny_run import write_data, write_model, write_recipe


def logged_steps(run: Path) -> list[int]:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


@pytest.mark.ranks
@pytest.mark.timeout(240)
def test_a_polite_kill_saves_the_step_it_interrupts(tmp_path):
    write_model(tmp_path / "model")
    write_data(tmp_path / "shards")
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path, schedule={"steps": 100_000}, loader={"workers": 1})
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    command = [launcher, "--num_gpus", "2", "--master_port", str(free_port()), "launch/train.py", str(recipe)]
    run = tmp_path / "run"
    process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True)
    try:
        until = time.monotonic() + 150
        while len(logged_steps(run)) < 3:
            assert process.poll() is None and time.monotonic() < until, "it never came to step 3"
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGTERM)
        while not (run / "checkpoints" / "latest").exists():
            assert time.monotonic() < until, "it never saved"
            time.sleep(0.2)
        process.wait(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    last = max(logged_steps(run))
    assert (run / "checkpoints" / "latest").read_text() == f"step-{last:08d}"
    resumed = run_script("launch/train.py", recipe, f"schedule.steps={last + 1}")
    assert "saved by 2 ranks, this run has 1" in resumed.stderr, "the checkpoint is not the one two ranks wrote"


@pytest.mark.timeout(120)
def test_an_error_of_the_program_ends_the_process(tmp_path):
    """With loader workers alive, too: they ignore the signal that an ordinary exit would send them."""
    write_model(tmp_path / "model")
    write_data(tmp_path / "shards")
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path, loader={"workers": 1})
    program = (
        "import sys; sys.path[:0] = ['launch']\n"
        "import train\n"
        "from megaunigame.engine.zero3 import Learner\n"
        "from megaunigame.launching import run_to_exit\n"
        "def fails(self): raise RuntimeError('out of memory')\n"
        "Learner.update = fails\n"
        f"run_to_exit(train.main, [{str(recipe)!r}])\n"
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
