"""The moments at which ranks are killed are those of the run as it is, and are counted right."""

from __future__ import annotations

import importlib
import os
import random
import re
import subprocess
import sys

import pytest

from tests.faults.kills import NUMBERS, OF_RANK_0, depends_on_the_clock, differences, draw_moment, draw_rounds
from tests.faults.moments import CALLS, FILES, Countdown, Moment
from tests.multi_process.launcher import REPOSITORY


@pytest.mark.parametrize("at", CALLS)
def test_every_call_is_one_of_the_run(at):
    module, method = CALLS[at]
    owner, name = method.split(".")
    assert callable(getattr(getattr(importlib.import_module(module), owner), name))


def test_every_moment_of_a_kill_is_known():
    assert set(NUMBERS) <= {*CALLS, *FILES} and set(OF_RANK_0) <= set(NUMBERS)


@pytest.mark.parametrize(
    ("at", "path"),
    [
        ("file of a save", "/r/checkpoints/saving-step-00000002/learner-rank-00001.safetensors"),
        ("manifest", "/r/checkpoints/saving-step-00000002/manifest.json.tmp"),
        ("before the rename", "/r/checkpoints/saving-step-00000002 -> /r/checkpoints/step-00000002"),
        ("before latest", "/r/checkpoints/latest.tmp -> /r/checkpoints/latest"),
        ("pruning", "/r/checkpoints/step-00000002 -> /r/checkpoints/deleting-step-00000002"),
    ],
)
def test_files_of_a_save_are_told_apart(at, path):
    matching = [name for name, (_, pattern) in FILES.items() if re.search(pattern, path)]
    assert at in matching and set(matching) <= {at, "file of a save", "while pruning"}


def test_only_the_wanted_call_counts(monkeypatch):
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(number))
    countdown = Countdown(Moment(0, "forward", 3, "SIGTERM", times=2))
    for calls, expected in ((2, 0), (1, 2), (5, 2)):
        for _ in range(calls):
            countdown()
        assert len(sent) == expected


OPENS = """
from tests.faults.moments import Moment, plant
import os, sys
plant([Moment(0, "manifest", 2)])
for name in ("other.json", "manifest.json", "manifest.json", "never.json"):
    open(os.path.join(sys.argv[1], name), "w").write("x")
"""


def test_a_process_is_killed_before_the_second_file_of_its_kind(tmp_path):
    folder = tmp_path / "checkpoints" / "saving-step-00000002"
    folder.mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", OPENS, str(folder)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == -9 and "MOMENT rank 0: SIGKILL" in done.stdout, done
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", "other.json"]


def test_rounds_are_a_function_of_their_seed():
    rounds = draw_rounds(3, [1, 2, 4])
    assert rounds == draw_rounds(3, [1, 2, 4]) != draw_rounds(4, [1, 2, 4])
    assert sorted(moment.at for _, moment in rounds) == sorted(NUMBERS)
    assert all(a != b for (a, _), (b, _) in zip(rounds, rounds[1:], strict=False))
    assert all(moment.rank < world for world, moment in rounds)
    assert {draw_moment(random.Random(n), "manifest", 4).rank for n in range(20)} == {0}


def test_runs_are_compared_without_the_clock():
    assert depends_on_the_clock("perf/step_seconds") and depends_on_the_clock("data/wait_seconds")
    assert not depends_on_the_clock("loss/total") and not depends_on_the_clock("optim/grad_norm")
    assert differences({"a": b"1", "b": 2}, {"a": b"1", "c": 2}) == ["b", "c"]
    assert differences({"a": b"1"}, {"a": b"2"}) == ["a"] and differences({"a": 1}, {"a": 1}) == []
