"""Files are written while training goes on, and one rank's trouble is that of all."""

from __future__ import annotations

import errno
import os
import threading

import pytest
import torch
from safetensors.torch import load_file

from megaunigame.checkpoint import learner_files, saver
from megaunigame.checkpoint.manager import CheckpointManager
from megaunigame.checkpoint.saved_learner import FILE
from megaunigame.checkpoint.saver import Saver
from megaunigame.errors import CheckpointError, ConfigError, TransientCheckpointError
from megaunigame.storage.background import BackgroundWriting
from megaunigame.storage.pending import PendingFile
from tests.checkpoint.stand_ins import Learner, names, saved, small_learner  # noqa: F401
from tests.worlds import OneRank, on_ranks

pytestmark = pytest.mark.usefixtures("small_learner")


class Slow(PendingFile):
    """Its writing ends when `goes_on` is set."""

    goes_on = threading.Event()

    def write(self, folder, *moved):
        assert Slow.goes_on.wait(10)
        return super().write(folder, *moved)


class Broken(PendingFile):
    error: BaseException = OSError()

    def write(self, folder, *moved):
        (folder / self.name).write_bytes(b"half")
        raise Broken.error


def test_the_steps_go_on_while_files_are_written_and_all_ranks_finish_in_the_same_step(tmp_path):
    """The slow rank is the second: the first must wait for it, and both find the save complete in the same step."""
    Slow.goes_on.clear()

    def work(world):
        manager = CheckpointManager(tmp_path, 2, world)
        learner = Learner(world, 1)
        slow = [lambda: [Slow("slow.json", content=b"{}")]] if world.rank == 1 else []
        manager.begin(learner, {"step": 1}, 1, slow)
        learner.value = 9
        if world.rank == 0:
            manager._attempt.writing.wait()  # it has nothing more to write, and must not go ahead alone
        found = []
        for step in range(6):
            manager.advance()
            done = manager.taken()
            found += [(step, saved.step) for saved in done]
            world.barrier()
            if step == 2:
                assert not found and [name.partition(".")[0] for name in names(manager)] == ["saving-step-00000001"]
                Slow.goes_on.set()
                manager._attempt.writing.wait()  # so that the next step finds it
            world.barrier()
        return found, len(world.calls)

    results = on_ranks(2, work)
    assert results[0] == results[1] == ([(3, 1)], 4), "one all-reduce a step while a save is pending, none after it"
    assert load_file(tmp_path / "checkpoints" / "step-00000001" / FILE.format(1))["weight"][0] == 1


def test_a_new_save_waits_for_the_one_before(tmp_path):
    Slow.goes_on.clear()
    threading.Timer(0.3, Slow.goes_on.set).start()

    def work(world):
        manager = CheckpointManager(tmp_path, 5, world)
        manager.begin(Learner(world, 1), {"step": 1}, 1, [lambda: [Slow(f"s-rank-{world.rank:05d}.json", content=b"{}")]])
        manager.begin(Learner(world, 2), {"step": 2}, 2)
        assert [done.step for done in manager.taken()] == [1]
        manager.wait()
        manager.wait()
        return manager.taken()

    (first,), (second,) = on_ranks(2, work)
    assert first == second and first.step == 2
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-00000001", "step-00000002"]
    assert (folder / "latest").read_text() == "step-00000002"


def test_what_was_saved_is_said(tmp_path):
    manager = saved(tmp_path, 500)
    (done,) = manager.taken()
    size = sum(f.stat().st_size for f in (tmp_path / "checkpoints" / "step-00000500").iterdir() if f.name != "manifest.json")
    assert done.bytes == size and 0 < done.paused <= done.seconds < 10 and manager.taken() == []
    assert str(saver.Saved(500, 12_345_678_901, 4.13, 0.27)) == "saved step 500 in 4.1 s (12.3 GB, training paused 0.3 s)"
    assert str(saver.Saved(500, 1_234_567, 0.1, 0.1)).startswith("saved step 500 in 0.1 s (1.2 MB, ")


@pytest.mark.fault(
    "a run that was stopped in a save comes back to a folder that another has taken",
    does="all its ranks end; the save of the other run is not touched",
    lost="the save of the run that was stopped",
)
@pytest.mark.parametrize("trouble", ["", "files that come late", "a disk that is full"])
def test_a_save_of_a_run_that_lost_its_folder_gets_no_name(tmp_path, monkeypatch, trouble):
    """Both are about to save step 1, also while rank 0 of the first waits for a file, and also when its own save failed."""
    owner, looks = ["first"], []

    def work(world):
        def check():
            looks.append("look")
            if owner[0] != "first":
                raise ConfigError("taken over by another run")

        first = CheckpointManager(tmp_path, 2, world, check)
        broken = [lambda: [Broken("b.json", content=b"1234")]] if trouble == "a disk that is full" else []
        first.begin(Learner(world, 1), {"step": 1}, 1, broken if world.rank else [])
        first._attempt.writing.wait()
        world.barrier()
        if world.is_main and trouble == "files that come late":
            monkeypatch.setattr(Saver, "_see", lambda *_: owner.append(owner.pop(0) + " no more"))
        elif world.is_main:
            owner[0] = "second"
        world.barrier()
        second = CheckpointManager(tmp_path, 2, world)
        second.begin(Learner(world, 2), {"step": 1}, 1)
        assert first.folder == second.folder and second._attempt.folder.name.startswith("saving-step-00000001.")
        with pytest.raises(ConfigError, match="taken over by another run"):
            first.wait()
        world.barrier()
        left = names(second)
        with pytest.raises(ConfigError, match="taken over"):
            first.begin(Learner(world, 3), {"step": 3}, 3)
        second.wait()
        return left

    monkeypatch.setattr(Broken, "error", OSError(errno.ENOSPC, "No space left on device"))
    for left in on_ranks(2, work):
        assert [name.partition(".")[0] for name in left] == ["saving-step-00000001"]
    assert load_file(tmp_path / "checkpoints" / "step-00000001" / FILE.format(1))["weight"][0] == 2 and looks
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000001"


def test_files_of_a_run_that_was_stopped_do_not_land_in_the_attempt_of_another(tmp_path):
    Slow.goes_on.clear()
    first, second = (CheckpointManager(tmp_path, 2, OneRank()) for _ in range(2))
    first.begin(Learner(value=1), {"step": 1}, 1, [lambda: [Slow("late.json", content=b"{}")]])
    second.begin(Learner(value=2), {"step": 1}, 1)
    Slow.goes_on.set()
    first._attempt.writing.wait()
    second.wait()
    assert "late.json" not in [path.name for path in (tmp_path / "checkpoints" / "step-00000001").iterdir()]


TROUBLES = {
    "full": (OSError(errno.ENOSPC, "No space left on device"), r"rank 1: the disk is full: 4 bytes needed, [\d,]+ free"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "rank 1: the quota of this user is used up: 4 bytes needed"),
    "read only": (OSError(errno.EROFS, "Read-only file system", "x"), r"rank 1: x may not be written \(Read-only file"),
    "odd": (ValueError("odd"), "rank 1: ValueError: odd"),
    "thread ended": (SystemExit(), "rank 1: its writing was cut off"),
}


@pytest.mark.fault(
    "one rank cannot write its files", does="all ranks stop with one line; the attempt is deleted", lost="the step"
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("error", "message"), TROUBLES.values(), ids=TROUBLES)
def test_the_trouble_of_one_rank_is_that_of_all(tmp_path, monkeypatch, error, message):
    monkeypatch.setattr(Broken, "error", error)
    original = learner_files.pending_files
    monkeypatch.setattr(
        learner_files,
        "pending_files",
        lambda learner: (
            [Broken("b.json", content=b"1234")] if learner.value == 2 and learner.world.rank == 1 else original(learner)
        ),
    )

    def work(world):
        manager = saved(tmp_path, 1, world=world)
        manager.begin(Learner(world, 2), {"step": 2}, 2)
        with pytest.raises(CheckpointError, match=message) as caught:
            manager.wait()
        world.barrier()
        found = names(manager)
        manager.save(Learner(world, 3), {"step": 3}, 3)  # and it goes on
        return found, str(caught.value)

    for found, said in on_ranks(2, work):
        assert found == ["latest", "step-00000001"] and "newest complete checkpoint: step-00000001" in said
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000003"


NO_MEMORY = (
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory\nmore"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate memory of 9 bytes"),
    RuntimeError("CUDA error: out of memory, while allocate memory was asked for"),
    torch.OutOfMemoryError("HIP: tried to allocate memory"),
    MemoryError("allocate memory"),
)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access was encountered"), RuntimeError("odd")])
def test_a_fault_of_a_device_is_not_called_a_lack_of_memory(tmp_path, monkeypatch, error):
    def pending_files(_):
        raise error

    monkeypatch.setattr(learner_files, "pending_files", pending_files)
    with pytest.raises(RuntimeError) as caught:
        CheckpointManager(tmp_path, 2, OneRank()).begin(Learner(), {"step": 1}, 1)
    assert caught.value is error


@pytest.mark.parametrize("error", NO_MEMORY)
def test_no_memory_for_the_copies_is_said_on_all_ranks(tmp_path, monkeypatch, error):
    def pending_files(learner):
        if learner.world.rank:
            raise error
        return []

    monkeypatch.setattr(learner_files, "pending_files", pending_files)

    def work(world):
        with pytest.raises(CheckpointError, match=r"rank 1: no copy of the state could be made: \w+Error: .*allocate memory"):
            CheckpointManager(tmp_path, 2, world).begin(Learner(world), {"step": 1}, 1)

    on_ranks(2, work)


@pytest.mark.fault(
    "nodes that do not share a file system", does="refused at the first save, the rank named", lost="the first interval"
)
def test_files_that_rank_0_cannot_see_are_not_a_checkpoint(tmp_path, monkeypatch):
    """Rank 1 writes to a folder of its own node, which rank 0 waits for in vain; late names are waited for."""
    monkeypatch.setattr(saver, "PATIENCE_SECONDS", 0.5)

    def elsewhere(world):
        manager = CheckpointManager(tmp_path / str(world.rank), 2, world)
        with pytest.raises(
            TransientCheckpointError, match=r"rank 1 has written learner-rank-00001.*one shared file system"
        ) as caught:
            manager.save(Learner(world), {"step": 1}, 1)
        return str(caught.value)

    on_ranks(2, elsewhere)
    assert not list((tmp_path / "0" / "checkpoints").glob("s*"))

    def late(world):
        manager = CheckpointManager(tmp_path / "late", 2, world)
        manager.begin(Learner(world), {"step": 1}, 1)
        manager._attempt.writing.wait()
        if world.rank:
            file = manager._attempt.folder / FILE.format(1)
            file.rename(tmp_path / "hidden")
            threading.Timer(0.2, lambda: (tmp_path / "hidden").rename(file)).start()
        world.barrier()
        manager.wait()
        return manager.find("auto")

    assert on_ranks(2, late)[0].name == "step-00000001"


def test_a_file_that_is_shorter_than_its_rank_says_is_no_checkpoint(tmp_path, monkeypatch):
    """A node may see an old size for some seconds."""
    monkeypatch.setattr(saver, "PATIENCE_SECONDS", 0.3)

    def work(world):
        manager = CheckpointManager(tmp_path, 2, world)
        manager.begin(Learner(world), {"step": 1}, 1)
        manager._attempt.writing.wait()
        if world.rank:
            os.truncate(manager._attempt.folder / FILE.format(1), 10)
        world.barrier()
        with pytest.raises(
            TransientCheckpointError, match=r"rank 1 wrote [\d,]+ bytes of learner-rank-00001.safetensors, rank 0 sees 10"
        ):
            manager.wait()

    on_ranks(2, work)


def test_two_ranks_with_one_file_are_refused_before_they_write(tmp_path):
    def work(world):
        with pytest.raises(CheckpointError, match=r"several ranks want to write mine\.json"):
            saved(tmp_path, world=world).begin(Learner(world), {}, 1, [lambda: [PendingFile("mine.json", content=b"")]])

    on_ranks(2, work)


def test_files_may_be_changed_in_memory_only_after_they_are_written(tmp_path):
    """The copies are released when they are written."""
    writing = BackgroundWriting([PendingFile("a.safetensors", {"x": torch.zeros(3)})], tmp_path / "deep")
    writing.wait()
    assert (
        writing.ended
        and writing.problem == ""
        and writing.files == ()
        and [w.name for w in writing.written] == ["a.safetensors"]
    )
