"""A disk that is slow on one rank is waited for, in many short collectives; who is slow is named."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from megaunigame.checkpoint import contents, waiting
from megaunigame.checkpoint.manager import CheckpointManager
from megaunigame.checkpoint.waiting import wait_for_all
from megaunigame.parallel.pulse import PULSE
from megaunigame.storage import pending
from megaunigame.storage.pending import PendingFile, sha256_of
from tests.checkpoint.stand_ins import Learner, saved, small_learner  # noqa: F401
from tests.worlds import on_ranks

pytestmark = pytest.mark.usefixtures("small_learner")
LIMIT = 0.5
"""Seconds of a collective."""


class Steady(PendingFile):
    """Writes one part each 0.1 s, for longer than the limit of a collective."""

    def write(self, folder, *moved):
        for _ in range(20):
            time.sleep(0.1)
            moved[0](1)
        return super().write(folder, *moved)


@pytest.fixture
def marks(monkeypatch):
    """The marks of all ranks."""
    made: list[str] = []
    monkeypatch.setattr(PULSE, "mark", lambda: made.append(threading.current_thread().name))
    return made


@pytest.fixture
def short_looks(monkeypatch):
    monkeypatch.setattr(waiting, "LONGEST", 0.1)
    monkeypatch.setattr(waiting, "QUIET_SECONDS", 0.2)


@pytest.mark.fault(
    "the disk of one rank is slow: a save, or a check of hashes, takes longer than the limit of a collective",
    does="waits while bytes move; each minute a line names the ranks that are still at work",
    lost="",
)
def test_a_save_that_is_slow_on_one_rank_is_completed(tmp_path, marks, short_looks, caplog):
    def work(world):
        world.meeting._timeout = LIMIT  # a rank that waits longer breaks it
        manager = CheckpointManager(tmp_path, 2, world)
        slow = [lambda: [Steady("slow.json", content=b"{}")]] if world.rank else []
        manager.begin(Learner(world, 1), {"step": 1}, 1, slow)
        manager.wait()
        return manager.taken()[0].step

    assert on_ranks(2, work) == [1, 1]
    assert "Writing the checkpoint of step 1: rank 1 is still at work" in caplog.text
    assert len(marks) > 10 and len({marks.count(name) for name in marks}) == 1, "the same on all ranks"


def test_a_check_that_is_slow_on_one_rank_is_completed(tmp_path, marks, short_looks, monkeypatch, caplog):
    on_ranks(2, lambda world: saved(tmp_path, 1, world=world))

    def slowly(path, moved):
        if path.name == "learner-rank-00001.safetensors":
            for _ in range(15):
                time.sleep(0.1)
                moved(1)
        return sha256_of(path)

    monkeypatch.setattr(contents, "sha256_of", slowly)

    def work(world):
        world.meeting._timeout = LIMIT
        return CheckpointManager(tmp_path, 2, world).find("auto").name

    assert on_ranks(2, work) == ["step-00000001"] * 2
    assert "Checking step-00000001: rank 1 is still at work" in caplog.text and len(marks) > 10


def test_an_error_of_a_check_is_raised(tmp_path, monkeypatch):
    manager = saved(tmp_path, 1)

    def fails(*_):
        raise ValueError("odd")

    monkeypatch.setattr(contents, "sha256_of", fails)
    with pytest.raises(ValueError, match="odd"):
        manager.find("auto")


class Stuck:
    """No byte moves."""

    moved = 7

    def __init__(self):
        self.looks = 0

    @property
    def ended(self):
        return self.looks > 5

    def wait(self, seconds=None):
        self.looks += 1


def test_a_disk_that_hangs_does_not_look_alive(marks):
    on_ranks(2, lambda world: wait_for_all(world, Stuck(), "Writing"))
    assert len(marks) == 2, "once for each rank: the first bytes"


def test_bytes_count_when_the_disk_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr(pending, "PIECE", 100)
    monkeypatch.setattr(pending, "FLUSHED", 300)
    flushed, moved, order = [], [], []
    monkeypatch.setattr(pending.os, "fsync", lambda handle: order.append("flush") or flushed.append(handle))
    file = PendingFile("a.safetensors", {"x": torch.arange(250, dtype=torch.float32)})
    written = file.write(tmp_path, lambda size: order.append("moved") or moved.append(size))
    assert sum(moved) == written.bytes == (tmp_path / "a.safetensors").stat().st_size and len(moved) == 4
    assert order == ["flush", "moved"] * 4
    read = []
    assert sha256_of(tmp_path / "a.safetensors", read.append) == written.sha256 and sum(read) == written.bytes
