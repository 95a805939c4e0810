"""Phases of a step: which second belongs to which."""

from __future__ import annotations

import pytest
import torch

from megaunigame.engine.reductions import REDUCING, time_reductions
from megaunigame.step import phases
from megaunigame.step.phases import BACKWARD, DATA, GENERATE, OTHER, PHASES, PLAYERS, REDUCE, Phases, PhaseTimer


@pytest.fixture
def clock(monkeypatch):
    """A clock that is put forward by hand."""
    now = [100.0]
    monkeypatch.setattr(phases.time, "perf_counter", lambda: now[0])

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def test_seconds_by_phase_without_gap_or_overlap(clock):
    timer = PhaseTimer(torch.device("cpu"))
    with timer(DATA):
        clock(1)
    clock(2)
    with timer(BACKWARD):
        clock(4)
        with timer(REDUCE):
            clock(8)
        clock(16)
    with timer(DATA):
        clock(32)
    taken = timer.pop()
    assert taken == dict.fromkeys(PHASES, 0.0) | {DATA: 33, OTHER: 2, BACKWARD: 20, REDUCE: 8}
    clock(64)
    assert timer.pop() == dict.fromkeys(PHASES, 0.0) | {OTHER: 64}


def test_a_phase_ends_when_it_fails(clock):
    timer = PhaseTimer(torch.device("cpu"))
    with pytest.raises(ValueError), timer(PLAYERS):
        clock(1)
        raise ValueError
    clock(2)
    assert timer.pop() == dict.fromkeys(PHASES, 0.0) | {PLAYERS: 1, OTHER: 2}


def test_nobody_listens_by_default():
    with Phases()(GENERATE):
        pass


def test_cuda_events_are_read_once(monkeypatch):
    """On CUDA: events on the stream, one synchronization, milliseconds."""
    made: list[int] = []
    waits: list[torch.device] = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            made.append(len(made))
            self.at = 500.0 * made[-1]

        def elapsed_time(self, end: Event) -> float:
            assert waits, "events are read after the device was waited for"
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    timer = PhaseTimer(torch.device("cuda", 0))
    with timer(GENERATE):
        assert not waits
    assert timer.pop() == dict.fromkeys(PHASES, 0.0) | {GENERATE: 0.5, OTHER: 1.0} and len(waits) == 1


def test_reductions_are_a_phase_of_their_own(clock):
    """The engine's methods keep their arguments and results."""

    class Optimizer:
        def reduce_independent_p_g_buckets_and_remove_grads(self, parameter: int, *, index: int) -> int:
            clock(3)
            return parameter + index

        def overlapping_partition_gradients_reduce_epilogue(self) -> None:
            clock(5)

    optimizer, timer = Optimizer(), PhaseTimer(torch.device("cpu"))
    time_reductions(optimizer, timer)
    with timer(BACKWARD):
        clock(1)
        assert getattr(optimizer, REDUCING[0])(7, index=2) == 9
        getattr(optimizer, REDUCING[1])()
    taken = timer.pop()
    assert taken[REDUCE] == 8 and taken[BACKWARD] == 1
