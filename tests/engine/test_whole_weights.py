"""Whole weights for many calls: when they fit, how long a gather takes, and what an error leaves; with ranks:
tests/multi_process/resume.py."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

from megaunigame.engine import whole_weights as module
from megaunigame.engine.capacity import Memory
from megaunigame.engine.whole_weights import fits_whole, gather_seconds, whole_bytes, whole_weights
from megaunigame.errors import Interrupted
from tests.worlds import OneRank

NUMBERS = {"a": 10, "b": 30, "c": 60}


class Parameter:
    """In bf16, of which this rank has a slice."""

    def __init__(self, name: str, numbers: int, done: list, status: ZeroParamStatus):
        self.name, self.ds_numel, self.ds_status, self.done = name, numbers, status, done

    def element_size(self) -> int:
        return 2

    def all_gather(self, parameters: list) -> None:
        self.done.append(("gather", [p.name for p in parameters]))

    def all_gather_coalesced(self, parameters: list) -> SimpleNamespace:
        self.done.append(("gather as a pass", [p.name for p in parameters]))
        return SimpleNamespace(wait=lambda: None)

    def partition(self, param_list: list) -> None:
        self.done.append(("partition", [p.name for p in param_list]))


class Engine:
    """What `whole_weights` asks of a learner, and in which order."""

    def __init__(self, master_bytes: int = 0, moment_bytes: int = 0):
        self.done: list = []
        whole = {"b": ZeroParamStatus.AVAILABLE}
        self.parameters = [
            Parameter(n, size, self.done, whole.get(n, ZeroParamStatus.NOT_AVAILABLE)) for n, size in NUMBERS.items()
        ]
        self.module = SimpleNamespace(parameters=lambda: iter(self.parameters))
        offload = SimpleNamespace(
            partition_all_parameters=lambda: self.done.append("partition all"), persistent_parameters=self.parameters[1:2]
        )
        self.gather_plans = SimpleNamespace(offload=offload, resting=self.resting)
        self.gathered = SimpleNamespace(total=1000)
        self.world = OneRank(2)
        here = torch.empty(master_bytes, dtype=torch.uint8)
        self.masters = [here, torch.empty(10**6, dtype=torch.uint8, device="meta")]  # the second is on another device
        self.moment_bytes = lambda: moment_bytes

    @contextmanager
    def resting(self):
        self.done.append("rest")
        try:
            yield
        finally:
            self.done.append("rested")


def test_weights_are_gathered_once_and_dropped():
    learner = Engine()
    with whole_weights(learner):
        learner.done.append("work")
    gathers = ("gather", ["a", "b", "c"]), ("gather", ["b"])
    assert learner.done == ["partition all", gathers[0], "rest", "work", "rested", "partition all", gathers[1]]
    assert learner.gathered.total == 1000 + 200, "bytes of what was gathered"


@pytest.mark.parametrize(("error", "gathers"), [(Interrupted("stop"), 2), (RuntimeError("of one rank"), 1)])
def test_an_error_of_one_rank_makes_no_collective_and_an_interruption_leaves_all_as_it_was(error, gathers):
    learner = Engine()
    with pytest.raises(type(error)), whole_weights(learner):
        raise error
    assert [done[1] for done in learner.done if done[0] == "gather"] == [["a", "b", "c"], ["b"]][:gathers]
    assert learner.done.count("partition all") == 2


def test_with_zero_2_there_is_nothing_to_gather():
    learner = Engine()
    learner.gather_plans = None
    with whole_weights(learner):
        learner.done.append("work")
    assert learner.done == ["work"] and whole_bytes(learner) == 0 and gather_seconds(learner) == 0.0


@pytest.mark.parametrize(
    ("free", "masters", "moments", "fits"),
    [
        (400, 0, 0, True),  # 200 bytes are half of it
        (399, 0, 0, False),
        (800, 200, 0, True),  # the first update will take twice the masters that are on this device
        (799, 200, 0, False),
        (400, 200, 400, True),  # it has
        (500, 200, 300, True),
        (499, 200, 300, False),
        (400, 100, 999, True),
    ],
)
def test_whole_weights_fit_into_a_share_of_what_will_be_free(monkeypatch, free, masters, moments, fits):
    monkeypatch.setattr(module, "memory_of", lambda world: Memory(host=10**9, device=free, ranks=2))
    assert fits_whole(Engine(masters, moments), 0.5) == fits


def test_weights_that_do_not_fit_on_one_rank_are_whole_on_none(monkeypatch):
    monkeypatch.setattr(module, "memory_of", lambda world: Memory(host=10**9, device=10**6, ranks=2))
    learner, asked = Engine(), []
    learner.world = SimpleNamespace(device=torch.device("cpu"), any=lambda value: asked.append(value) or True)
    assert not fits_whole(learner, 0.5) and asked == [False]


@pytest.mark.parametrize(("most", "timed", "seconds"), [(2**30, ["a", "c"], 3.0 * 200 / 140), (20, ["a"], 3.0 * 200 / 20)])
def test_the_time_of_a_gather_is_that_of_a_part_that_was_gathered_before(monkeypatch, most, timed, seconds):
    """The first opens connections; the slowest rank counts, and so do the bytes that were not timed."""
    clock = iter([0.0, 50.0, 100.0, 102.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(module, "TIMED_BYTES", most)
    monkeypatch.setattr(OneRank, "all_reduce_max", lambda world, tensor: tensor + 1.0)
    learner = Engine()
    assert gather_seconds(learner) == pytest.approx(seconds)
    first, second = (
        [(how, timed), ("partition", timed)] for how in ("gather", "gather as a pass")
    )  # the first makes the second copies of hpZ
    assert learner.done == [*first, *second, *second] and learner.gathered.total == 1000
