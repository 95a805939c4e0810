"""How a launch script ends: the exit code and the lines of each kind of error."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.multi_process.launcher import REPOSITORY

SCRIPT = """
import sys
from megaunigame import errors, launching
launching.OTHERS_WAIT_SECONDS = 0.1
def main(arguments): raise eval(arguments[0])
launching.run_to_exit(main, sys.argv[1:])
"""


def ended(error: str, **environment: str) -> tuple[int, str]:
    """Exit code, and what the console shows."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, error],
        env={**inherited, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "error, code, line",
    [
        ("errors.ConfigError('x')", 2, "ConfigError: x\n"),
        ("errors.LoaderError('x')", 1, "LoaderError: x\n"),
        ("errors.LostShard('x')", 1, "LostShard: x\n"),
        ("errors.MissingShard('x')", 1, "MissingShard: x\n"),
        ("errors.MeetingError('x')", 1, "MeetingError: x\n"),
        ("errors.TransientError('x')", 1, "TransientError: x\n"),
        ("errors.LostRankError('x')", 1, "rank 0: LostRankError: x\n"),
        ("errors.Interrupted('x')", 75, "x\n"),
        ("OSError(28, 'No space left on device')", 2, "OSError: No space left on device. Make room, then give"),
    ],
)
def test_one_line_and_a_code_that_says_whether_to_try_again(error, code, line):
    found, said = ended(error)
    assert found == code and said.startswith(line) and said.count("\n") == 1


def test_a_fault_of_the_program_has_its_traceback():
    code, said = ended("OSError(116, 'Stale file handle')")
    assert code == 1 and "Traceback" in said and "Stale file handle" in said


@pytest.mark.parametrize("lines, code", [(1, 0), (100_000, 141)], ids=["all is done", "while it prints"])
def test_a_reader_that_has_ended_ends_a_command_without_a_word(lines, code):
    script = (
        f"from megaunigame import launching\nlaunching.run_to_exit(lambda _: [print('x' * 80) for _ in range({lines})], [])"
    )
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": ""}
    done = subprocess.run([sys.executable, "-c", script], env=environment, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (code, "")


def test_another_broken_pipe_is_a_fault():
    code, said = ended("BrokenPipeError(32, 'Broken pipe')")
    assert code == 1 and "Traceback" in said


def test_another_rank_than_0_says_whose_error_it_is():
    assert ended("errors.ConfigError('x')", RANK="3") == (2, "rank 3: ConfigError: x\n")
