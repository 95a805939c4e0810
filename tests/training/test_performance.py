"""What the metrics of a step say about memory, and that they ask the other ranks for nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from megaunigame.monitoring import names
from megaunigame.parallel.ranks import Ranks
from megaunigame.training import performance
from megaunigame.training.performance import Performance

RANKS = 3


class Silent(Ranks):
    """A rank that must not talk to others."""

    def all_reduce_sum(self, tensor):
        raise AssertionError("a step has no collective for its metrics")

    all_reduce_max = all_reduce_sum


def performance_of(rank: int) -> Performance:
    module = nn.Identity()
    module.processor = SimpleNamespace(after_prompt=2)
    learner = SimpleNamespace(module=module, gathered=SimpleNamespace(pop=lambda: 70), compiled=None)
    return Performance(learner, Silent(rank, RANKS, 0, torch.device("cpu")), "bf16")


def test_a_step_reports_the_most_memory_of_any_rank_in_the_step_before(monkeypatch):
    peaks = {"now": 0, "forgotten": 0}
    monkeypatch.setattr(performance, "peak_memory", lambda device: peaks["now"])
    monkeypatch.setattr(performance, "forget_peak", lambda device: peaks.update(forgotten=peaks["forgotten"] + 1))
    ranks = [performance_of(rank) for rank in range(RANKS)]
    for of_the_step_before, expected in (((11, 2**40 + 1, 13), 2**40 + 1), ((17, 12, 5), 17)):
        for rank, peak in zip(ranks, of_the_step_before, strict=True):
            peaks["now"] = peak
            rank.begin()
        peaks["now"] = 2**50  # of this step, which the next one reports
        counts = sum(rank.counts() for rank in ranks)
        assert counts.dtype == torch.float64 and counts.shape == (2 + RANKS,)
        counts[:2] = torch.tensor([40.0, 30.0])
        metrics = ranks[1].metrics(6 * RANKS, 4, counts.tolist())
        assert metrics[names.PERF_PEAK_MEMORY_BYTES] == expected
    assert peaks["forgotten"] == 2 * RANKS
    assert metrics[names.PERF_USEFUL_TOKEN_SHARE] == 0.75 and metrics[names.PERF_ALLGATHER_BYTES] == 70
    assert metrics[names.PERF_TOKENS_PER_SECOND] == pytest.approx(40 / metrics[names.PERF_STEP_SECONDS])
    assert metrics[names.PERF_ROWS_PER_SECOND] == pytest.approx(6 * RANKS / metrics[names.PERF_STEP_SECONDS])
