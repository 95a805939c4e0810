"""Loader workers that die, and data that comes late."""

from __future__ import annotations

import logging
import math
import mmap
import os
import signal
import threading
import time

import pytest

from megaunigame.config import StreamConfig
from megaunigame.data.loading import leaving, loader
from megaunigame.data.loading.loader import MicroBatchLoader, _SlowData
from megaunigame.data.loading.lost_shards import LostShardRule, LostShards
from megaunigame.data.loading.whereabouts import SLOT, Whereabouts
from megaunigame.data.sources.opening import open_stream
from megaunigame.errors import Interrupted, LoaderError, LostShard
from megaunigame.step.requests import UNDERSTAND, RowRequest, StepPlan
from tests.data.shard_files import NumberRows, number_batches, write_shards

PLAN = StepPlan((RowRequest("answer", UNDERSTAND, "chat", 2),))


def batches(folder, rows=None):
    return number_batches(PLAN, {"chat": open_stream("chat", StreamConfig(str(folder)), 3)}, rows)


class Deadly(NumberRows):
    """Rows whose making kills the process at the `count`-th."""

    def __init__(self, count: int, end):
        super().__init__()
        self.left, self.end = count, end

    def row(self, request, sample, rng):
        self.left -= 1
        if self.left == 0:
            self.end()
        return super().row(request, sample, rng)


@pytest.mark.fault(
    "a signal while data does not come: a lost shard, a file system that hangs",
    does="all ranks leave the fetch, save the last step and exit with 75",
    lost="nothing",
)
@pytest.mark.parametrize("lost", [True, False])
def test_a_wait_is_left_when_the_run_was_asked_to_stop(tmp_path, monkeypatch, lost):
    """In the worker, which sees the flag; or by ending it, when it hangs."""
    monkeypatch.setattr(leaving, "PATIENCE", 60.0 if lost else 0.1)
    write_shards(tmp_path, [12])
    flag = mmap.mmap(-1, 1)
    made = batches(tmp_path, None if lost else Deadly(3, lambda: time.sleep(60)))
    made.lost_shards = LostShards(LostShardRule(wait=60.0, period=60.0, substitute=False))
    made.lost_shards.stopping = lambda: flag[0] > 0
    source = made.streams["chat"].source
    find = source.find

    def gone(position: int, attempt: int):
        if position >= 2:
            raise LostShard("a.tar is gone.", "a.tar")
        return find(position, attempt)

    if lost:
        source.find = gone
    loaded = iter(MicroBatchLoader(made, 0, 6, 1, 1, stopping=lambda: flag[0] > 0))
    next(loaded)
    flag[0] = 1
    began = time.monotonic()
    with pytest.raises(Interrupted):
        next(loaded)
    assert time.monotonic() - began < 20


@pytest.mark.fault(
    "a loader worker is killed, as by the kernel for want of memory",
    does="ends all ranks at the next fetch; names pid, signal, shard and what to type",
    lost="steps since the last save",
)
def test_a_killed_worker_is_named_and_only_at_a_fetch(tmp_path):
    write_shards(tmp_path, [12])
    handled = signal.getsignal(signal.SIGCHLD)
    loaded = iter(MicroBatchLoader(batches(tmp_path, Deadly(3, lambda: os.kill(os.getpid(), signal.SIGKILL))), 0, 6, 1, 1))
    next(loaded)
    assert signal.getsignal(signal.SIGCHLD) is handled, "torch would raise in the middle of a pass"
    time.sleep(1.0)  # the worker dies meanwhile, and nothing is raised here
    with pytest.raises(
        LoaderError,
        match=r"\(pid \d+\) was killed by SIGKILL while it read data-000000\.tar of stream chat\. .*loader\.workers \(1 here\)",
    ):
        next(loaded)


def test_a_worker_that_ends_by_itself_is_named(tmp_path):
    write_shards(tmp_path, [12])
    with pytest.raises(LoaderError, match=r"ended with exit code 7 while it read"):
        list(MicroBatchLoader(batches(tmp_path, Deadly(1, lambda: os._exit(7))), 0, 6, 1))


def test_another_error_of_a_worker_keeps_its_traceback(tmp_path):
    class Wrong(NumberRows):
        def row(self, request, sample, rng):
            raise KeyError("a mistake in the program")

    write_shards(tmp_path, [12])
    with pytest.raises(KeyError, match="a mistake in the program"):
        list(MicroBatchLoader(batches(tmp_path, Wrong()), 0, 6, 1))


@pytest.fixture
def stuck(tmp_path, monkeypatch):
    """`stuck(n)`: the first n workers hang before they begin, as one that was forked while a thread held a lock."""
    begin = loader._start_worker

    def hang(times: int) -> None:
        for number in range(times):
            (tmp_path / f"stuck-{number}").touch()

        def start(doing: Whereabouts, worker: int) -> None:
            for file in sorted(tmp_path.glob("stuck-*")):
                file.unlink()
                time.sleep(60)
            begin(doing, worker)

        monkeypatch.setattr(loader, "_start_worker", start)

    monkeypatch.setattr(loader, "BEGIN_SECONDS", 1.0)
    return hang


@pytest.mark.fault(
    "a loader worker hangs before it begins: it was forked while a thread held a lock",
    does="the workers of the rank are started again after a minute, three times at most",
    lost="nothing",
)
def test_workers_that_do_not_begin_are_started_again(tmp_path, caplog, stuck):
    write_shards(tmp_path / "shards", [12])
    stuck(1)
    made = list(MicroBatchLoader(batches(tmp_path / "shards"), 0, 4, 2, 1))
    in_this_process = MicroBatchLoader(batches(tmp_path / "shards"), 0, 4, 0)
    assert list(map(str, made)) == list(map(str, in_this_process)) and len(set(map(str, made))) == 4
    (said,) = [record.getMessage() for record in caplog.records]
    assert "have not begun within 1 s" in said and "waits for something to read" in said and "started again" in said


def test_workers_that_never_begin_end_the_run(tmp_path, stuck):
    write_shards(tmp_path / "shards", [12])
    stuck(6)
    with pytest.raises(LoaderError, match="did not begin, 3 times in a row. Type loader.workers=0"):
        list(MicroBatchLoader(batches(tmp_path / "shards"), 0, 4, 2, 1))


@pytest.mark.fault("data comes late", does="the rank says after loader.slow_seconds what each worker reads", lost="nothing")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_slow_read_is_said_while_it_lasts(tmp_path, caplog, workers):
    write_shards(tmp_path, [12])
    slow = Deadly(3, lambda: time.sleep(1.6))
    with caplog.at_level(logging.WARNING):
        loaded = list(MicroBatchLoader(batches(tmp_path, slow), 0, 3, workers, 1, slow_seconds=0.4))
    assert len(loaded) == 3
    said = [r.getMessage() for r in caplog.records if "has waited" in r.getMessage()]
    assert said and all("has read data-000000.tar of stream chat for" in text for text in said)


def test_no_word_about_data_in_time(tmp_path, caplog):
    write_shards(tmp_path, [12])
    list(MicroBatchLoader(batches(tmp_path), 0, 3, 0, slow_seconds=30))
    assert not caplog.records


def test_a_wait_is_said_each_time_it_has_doubled(caplog):
    slow, began = _SlowData(0.2, Whereabouts(0)), time.monotonic()
    with slow.waiting():
        time.sleep(2.0)
    slow.close()
    assert 2 <= len(caplog.records) <= 2 + math.log2((time.monotonic() - began) / 0.2)


def test_time_between_waits_is_not_waited(caplog):
    slow = _SlowData(1.0, Whereabouts(0))
    for _ in range(6):
        with slow.waiting():
            time.sleep(0.05)
        time.sleep(0.25)  # a step
    slow.close()
    assert not caplog.records


def test_whereabouts_keep_long_and_odd_names_within_their_slot():
    doing = Whereabouts(2)
    doing.note(0, 11, "x" * 2 * SLOT)
    doing.note(1, 12, "näme\udc80.tar")
    assert doing.of(11)[0] == (SLOT - 24) * "x"
    assert doing.of(12)[0] == "näme?.tar" and doing.of(13) is None
    doing.note(1, 12, "")
    assert doing.of(12) is None and "pid 12 waits for something to read" in doing.as_text()


def test_the_watching_thread_ends_with_the_loader(tmp_path):
    write_shards(tmp_path, [12])
    loader = iter(MicroBatchLoader(batches(tmp_path), 0, 3, 0, slow_seconds=0.4))
    next(loader)
    assert any(thread.name == "slow data" for thread in threading.enumerate())
    loader.close()
    deadline = time.monotonic() + 5
    while any(thread.name == "slow data" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
