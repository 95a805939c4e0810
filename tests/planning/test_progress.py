"""The line that says what a rehearsal is doing."""

from __future__ import annotations

import io

import torch
from torch import nn

from megaunigame.planning.machines import cluster
from megaunigame.planning.plan import make_plan
from megaunigame.planning.progress import Progress
from tests.planning.plans import tiny_recipe


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rehearsed(stream, seconds_a_call: float) -> str:
    """A rehearsal of one micro-step without checkpointing, then four with: 4 and 16 calls of two layers."""
    time = [0.0]
    progress, layers = Progress(stream, lambda: time[0]), [nn.Identity(), nn.Identity()]
    for micro_steps, checkpointing, calls in ((1, False, 4), (4, True, 16)):
        progress.begin(checkpointing)
        progress.watch(layers, micro_steps)
        for call in range(calls):
            time[0] += seconds_a_call
            layers[call % 2](torch.zeros(1))
        progress.end()
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


def test_a_terminal_gets_one_line_for_each_rehearsal():
    said = rehearsed(Terminal(), 1.0)
    assert said.count("\n") == 2 and said.count("\r") == 2 + 4 + 16
    assert len({len(line) for line in said.replace("\n", "").split("\r")[1:]}) == 1  # a shorter line leaves no rest


def test_without_a_stream_nothing_is_said(capfd):
    progress = Progress(None, lambda: 0.0)
    progress.begin(False)
    progress.watch([], 1)
    progress.end()
    assert capfd.readouterr() == ("", "")


def test_micro_steps_of_both_rehearsals_call_the_layers_equally_often():
    """What the time left rests on."""
    counts = []

    class Noted(Progress):
        def end(self) -> None:
            super().end()
            counts.append(self.per_micro_step)

    make_plan(tiny_recipe("tiny_sft"), cluster("h100-80g", 1, 2), progress=Noted(None))
    assert counts[0] == counts[1] > 0
