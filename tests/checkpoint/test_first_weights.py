"""The checkpoint of another run that a run began with stays, when that run deletes it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from megaunigame.checkpoint import first_weights
from megaunigame.checkpoint.base_identity import base_identity
from megaunigame.checkpoint.first_weights import keep_start
from megaunigame.checkpoint.runs import open_run, read_train_state, start_of
from megaunigame.checkpoint.saved_learner import FILE
from megaunigame.checkpoint.starting import step_folders_of
from tests.checkpoint.stand_ins import Learner, saved, small_learner  # noqa: F401
from tests.multi_process.tiny_run import write_recipe

pytestmark = pytest.mark.usefixtures("small_learner")


def run_of(home: Path, name: str, start: str = "") -> Path:
    """The step folder of a run that began with `start`, as a launch makes it."""
    kept = keep_start(home / name, start)
    folder = saved(home / name).save(Learner(value=1), {"step": 5, "name": name, "start": start, "kept_start": kept}, 5)
    write_recipe(home / name / "recipe.yaml", home)
    return folder


@pytest.mark.fault(
    "the run that model.weights_from names deletes the checkpoint another run began with",
    does="that run has kept its files (hard links): it is resumed and exported as before",
    lost="",
)
def test_a_deleted_start_is_still_there(tmp_path):
    (tmp_path / "model").mkdir()
    first = run_of(tmp_path, "first")
    second = run_of(tmp_path, "second", str(first))
    third = run_of(tmp_path, "third", str(second))
    identities = [base_identity(tmp_path / "model", str(step)) for step in (first, second)]
    kept = Path(start_of(second, read_train_state(second)))
    assert kept.is_relative_to(tmp_path / "second") and os.path.samefile(kept / FILE.format(0), first / FILE.format(0))
    assert keep_start(tmp_path / "second", str(kept)) == keep_start(tmp_path / "second", str(first)), "a resumed run"
    for run in ("first", "second"):
        shutil.rmtree(tmp_path / run)
    chain = [folder for folder, _ in step_folders_of(start_of(third, read_train_state(third)))]
    assert [read_train_state(folder)["name"] for folder in chain] == ["second", "first"]
    assert all(folder.is_relative_to(tmp_path / "third") for folder in chain)
    assert [base_identity(tmp_path / "model", str(folder)) for folder in reversed(chain)] == identities
    assert open_run(chain[0]).start == str(chain[1]) and open_run(chain[1]).start == ""
    moved = (tmp_path / "third").rename(tmp_path / "moved")
    assert start_of(moved / "checkpoints" / third.name, read_train_state(moved / "checkpoints" / third.name)).startswith(
        str(moved)
    )


def test_what_cannot_be_linked_is_copied_if_it_is_small(tmp_path, monkeypatch, caplog):
    def link(source, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", link)
    first = run_of(tmp_path, "first")
    second = run_of(tmp_path, "second", str(first))
    kept = Path(start_of(second, read_train_state(second)))
    assert kept != first and (kept / FILE.format(0)).read_bytes() == (first / FILE.format(0)).read_bytes()
    monkeypatch.setattr(first_weights, "LARGEST_COPY", 10)
    third = run_of(tmp_path, "third", str(first))
    assert start_of(third, read_train_state(third)) == str(first)
    assert "cannot be kept in" in caplog.text and "copy it elsewhere before its run deletes it" in caplog.text


@pytest.mark.parametrize("linked", [True, False])
def test_everything_is_flushed_before_it_gets_its_name(tmp_path, monkeypatch, linked):
    """A power cut leaves either all of it, or no folder with that name. What is linked was flushed when it was saved."""
    first, flushed, rename = run_of(tmp_path, "first"), set(), Path.rename

    def link(source, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    def checked(folder, target):
        inside = [path for path in folder.rglob("*") if not (linked and path.is_file() and path.stat().st_nlink > 1)]
        assert {folder.stat().st_ino, *(path.stat().st_ino for path in inside)} <= flushed
        assert len(inside) >= (3 if linked else 6)
        flushed.clear()
        return rename(folder, target)

    if not linked:
        monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.add(os.fstat(handle).st_ino))
    monkeypatch.setattr(Path, "rename", checked)
    assert keep_start(tmp_path / "second", str(first))
    assert (tmp_path / "second" / "first_weights").stat().st_ino in flushed, "its name"


def test_a_model_folder_is_not_kept(tmp_path):
    assert keep_start(tmp_path / "run", "") == keep_start(tmp_path / "run", str(tmp_path)) == ""
    assert not (tmp_path / "run").exists()
