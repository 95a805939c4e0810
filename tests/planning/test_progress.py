"""The line that says what a rehearsal is doing."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from megaunigame.errors import ConfigError
from megaunigame.planning.progress import Progress
from tests.multi_process.launcher import run_script


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rehearsed(stream, seconds_a_call: float) -> str:
    """A rehearsal of one micro-step without checkpointing, then four with: 4 and 16 calls of two layers."""
    time = [0.0]
    progress, layers = Progress(stream, lambda: time[0]), [nn.Identity(), nn.Identity()]
    for micro_steps, checkpointing, calls in ((1, False, 4), (4, True, 16)):
        with progress.line(checkpointing), progress.watching(layers, micro_steps):
            for call in range(calls):
                time[0] += seconds_a_call
                layers[call % 2](torch.zeros(1))
        assert not any(layer._forward_pre_hooks for layer in layers)
    return stream.getvalue()


def test_a_log_gets_a_line_now_and_then():
    lines = rehearsed(io.StringIO(), 10.0).splitlines()
    assert lines[:3] == [
        "rehearsing without gradient checkpointing ...",
        "rehearsing without gradient checkpointing: layer 2 of 2, 0:20 so far",
        "rehearsing without gradient checkpointing: layer 2 of 2, 0:40 so far",
    ]
    assert lines[3:6] == [
        "rehearsing with gradient checkpointing ...",
        "rehearsing with gradient checkpointing: layer 2 of 2, 1:00 so far, 12%, about 2:20 left",
        "rehearsing with gradient checkpointing: layer 2 of 2, 1:20 so far, 25%, about 2:00 left",
    ]
    assert lines[-1].endswith("3:20 so far, 100%, about 0:00 left") and len(lines) == 3 + 9


@pytest.mark.parametrize("columns", [40, 120])
def test_a_terminal_gets_one_line_for_each_rehearsal(monkeypatch, columns):
    """Without a rest of a longer line, and without wrapping."""
    monkeypatch.setenv("COLUMNS", str(columns))
    written = rehearsed(Terminal(), 1.0)
    assert written.count("\n") == 2 and written.count("\r") == 2 + 4 + 16
    assert {len(line) for line in written.replace("\n", "").split("\r")[1:]} == {columns - 1}


def test_an_error_begins_on_a_line_of_its_own():
    terminal, layer = Terminal(), nn.Identity()
    progress = Progress(terminal)
    with pytest.raises(ConfigError), progress.line(True), progress.watching([layer], 1):
        raise ConfigError("no")
    assert terminal.getvalue().endswith(" \n") and not layer._forward_pre_hooks


def test_without_a_stream_nothing_is_said(capfd):
    progress = Progress(None, lambda: 0.0)
    with progress.line(False), progress.watching([], 1):
        pass
    assert capfd.readouterr() == ("", "")


PROGRAM = """
from megaunigame.planning.progress import Progress
from megaunigame.planning.rehearsal import Rehearsal
from megaunigame.planning.workload import workload
from tests.planning.plans import tiny_recipe

for partitioned, like_a_run in ((False, False), (True, False), (True, True)):
    with workload(tiny_recipe("tiny_sft", "engine.ds_config=ds_configs/zero3_cpu.json"), 2) as work:
        rehearsal, progress = Rehearsal(work, gradient_checkpointing=True, partitioned=partitioned), Progress(None)
        with progress.watching(rehearsal.model.layers(), rehearsal.micro_steps(like_a_run=like_a_run)):
            rehearsal.rehearse(like_a_run=like_a_run)
        rehearsal.close()
        print(progress.per_micro_step)
"""


def test_as_many_micro_steps_are_made_as_are_announced():
    """What the time left rests on. In another process: pretended ranks have a process group."""
    done = run_script("-c", PROGRAM)
    one, partitioned, like_a_run = (float(line) for line in done.stdout.split())
    assert one == partitioned == like_a_run > 0, done.stderr
