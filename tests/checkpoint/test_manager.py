"""Step folders are complete or do not exist: crashes, pruning, damage. The learner's files are stand-ins."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from megaunigame.checkpoint import learner_files
from megaunigame.checkpoint import manager as manager_module
from megaunigame.checkpoint.manager import CheckpointManager, read_manifest
from megaunigame.checkpoint.saved_learner import DESCRIPTION, FILE, as_json
from megaunigame.errors import CheckpointError
from megaunigame.storage.pending import PendingFile
from tests.worlds import OneRank

EMPTY = as_json(1, 0, {})


@pytest.fixture
def disk(monkeypatch):
    """A learner whose files are two small ones; `disk.fails` makes the next save die half-way."""
    state = SimpleNamespace(fails=False)

    def pending_files(_learner):
        files = [PendingFile(FILE.format(0), content=b"1" * 100), PendingFile(DESCRIPTION, content=EMPTY.encode())]
        return [files[0], Failing()] if state.fails else files

    monkeypatch.setattr(learner_files, "pending_files", pending_files)
    monkeypatch.setattr(learner_files, "signature", lambda learner: "same model")
    return state


class Failing:
    def write(self, folder):
        raise OSError("disk full")


def saved(folder, *steps: int, keep: int = 2) -> CheckpointManager:
    """A manager of one rank that has saved these steps."""
    manager = CheckpointManager(folder, keep, world=OneRank())
    for step in steps:
        manager.save(None, {"step": step}, step)
    return manager


def test_saves_points_and_prunes(tmp_path, disk):
    manager = saved(tmp_path, 10, 20, 30)
    assert sorted(p.name for p in manager.folder.iterdir()) == ["latest", "step-00000020", "step-00000030"]
    assert manager.train_state(manager.find("auto")) == {"step": 30}


def test_a_crash_while_saving_leaves_the_older_checkpoint(tmp_path, disk):
    manager = saved(tmp_path, 10, keep=1)
    disk.fails = True
    message = (
        r"step 20 could not be written to .*\(disk full\); [\d,]+ bytes are free there.*checkpoint: step-00000010. Make room"
    )
    with pytest.raises(CheckpointError, match=message):
        manager.save(None, {"step": 20}, 20)
    assert manager.find("auto").name == "step-00000010"
    disk.fails = False
    manager.save(None, {"step": 20}, 20)
    assert manager.find("auto").name == "step-00000020"
    assert sorted(p.name for p in manager.folder.iterdir()) == ["latest", "step-00000020"]


def test_going_back_to_an_older_step_keeps_what_is_written_next(tmp_path, disk):
    manager = saved(tmp_path, 400, 500)
    for age, step in enumerate((400, 500)):
        os.utime(manager.folder / f"step-{step:08d}" / "manifest.json", (1_000 + age, 1_000 + age))
    manager.save(None, {"step": 100}, 100)
    assert manager.find("auto").name == "step-00000100"
    assert not (manager.folder / "step-00000400").exists()


def test_resume_settings(tmp_path, disk):
    manager = saved(tmp_path / "a")
    assert manager.find("auto") is None
    folder = manager.save(None, {"step": 1}, 1)
    assert manager.find("never") is None
    assert saved(tmp_path / "b").find(str(folder)) == folder
    assert CheckpointManager(tmp_path / "a", keep=2, world=OneRank(size=2)).find("auto") == folder


def test_damage_is_named(tmp_path, disk):
    folder = saved(tmp_path, 1).find("auto")
    (folder / FILE.format(0)).write_bytes(b"1" * 60)
    with pytest.raises(CheckpointError, match=r"learner-rank-00000\.safetensors has 60 bytes, its manifest says 100.*resume"):
        read_manifest(folder)
    (folder / FILE.format(0)).unlink()
    with pytest.raises(CheckpointError, match=r"learner-rank-00000\.safetensors is missing"):
        read_manifest(folder)


def test_files_that_rank_0_cannot_see_are_not_a_checkpoint(tmp_path, disk):
    manager = CheckpointManager(tmp_path, keep=2, world=OneRank(size=2))
    with pytest.raises(CheckpointError, match=r"files of 1 of 2 ranks.*one shared file system"):
        manager.save(None, {"step": 1}, 1)
    assert manager.find("auto") is None


def test_an_interrupted_deletion_does_no_harm(tmp_path, disk, monkeypatch):
    manager = saved(tmp_path, 1, keep=1)
    with monkeypatch.context() as patched:
        patched.setattr(manager_module.shutil, "rmtree", lambda path: (path / "manifest.json").unlink())
        manager.save(None, {"step": 2}, 2)
    manager.save(None, {"step": 3}, 3)
    assert sorted(p.name for p in manager.folder.iterdir()) == ["latest", "step-00000003"]
