"""EIO and ESTALE of a network file system: tried again, then told as what may pass. Nothing is taken for damaged."""

from __future__ import annotations

import errno
import os

import pytest

from megaunigame.checkpoint import contents, manifest, runs, saved_learner, step_folders
from megaunigame.checkpoint.manager import CheckpointManager
from megaunigame.checkpoint.saved_learner import SavedLearner
from megaunigame.errors import CheckpointError, TransientCheckpointError, TransientError
from megaunigame.storage import retries
from megaunigame.storage.pending import PendingFile
from tests.checkpoint.stand_ins import Learner, names, saved, small_learner  # noqa: F401
from tests.worlds import on_ranks

pytestmark = pytest.mark.usefixtures("small_learner")


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(retries, "WAITS", (0.0, 0.0, 0.0))


class Flaky(PendingFile):
    """Its first `fails` writes fail with `code`, half done."""

    fails, code = 0, errno.ESTALE

    def write(self, folder, *moved):
        if Flaky.fails:
            Flaky.fails -= 1
            (folder / self.name).write_bytes(b"half")
            raise OSError(Flaky.code, os.strerror(Flaky.code), str(folder / self.name))
        return super().write(folder, *moved)


def flaky(fails: int, code: int = errno.ESTALE):
    Flaky.fails, Flaky.code = fails, code
    return [lambda: [Flaky("x.json", content=b"{}")]]


def failing(monkeypatch, module, name: str, part: str, code: int = errno.EIO, times: int = 99) -> list[str]:
    """`module.name(path, ...)` fails for paths that end with `part`, `times` times."""
    original, failed = getattr(module, name), []

    def call(path, *more, **named):
        if str(path).endswith(part) and len(failed) < times:
            failed.append(str(path))
            raise OSError(code, os.strerror(code), str(path))
        return original(path, *more, **named)

    monkeypatch.setattr(module, name, call)
    return failed


def refusal(work) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        work()
    return caught.value


@pytest.mark.fault(
    "the file system fails some calls of a save (EIO, ESTALE)",
    does="tried again, with a line in the log; the save completes",
    lost="",
)
def test_a_write_that_fails_a_few_times_is_done_again(tmp_path, caplog):
    manager = saved(tmp_path, 1)
    manager.save(Learner(value=2), {"step": 2}, 2, flaky(3))
    assert manager.find("auto").name == "step-00000002" and "Trying again" in caplog.text
    assert (manager.folder / "step-00000002" / "x.json").read_bytes() == b"{}"


@pytest.mark.fault(
    "the file system fails all calls of a save (EIO, ESTALE)",
    does="all ranks end with exit code 1: the same command may succeed",
    lost="work since the last save",
)
def test_a_write_that_fails_always_is_an_error_that_may_pass(tmp_path):
    def work(world):
        manager = saved(tmp_path, 1, world=world)
        manager.begin(Learner(world, 2), {"step": 2}, 2, flaky(99) if world.rank else [])
        return [refusal(manager.wait)]

    for (error,) in on_ranks(2, work):
        assert isinstance(error, TransientError) and "rank 1: OSError" in str(error) and "Stale file handle" in str(error)
        assert "Make room" not in str(error) and "newest complete checkpoint: step-00000001" in str(error)


def test_what_the_user_must_do_goes_first(tmp_path):
    """One rank has no rights, for another the file system does not answer."""

    def work(world):
        manager = saved(tmp_path, 1, world=world)
        code = errno.EACCES if world.rank else errno.EIO

        class Failing(PendingFile):
            def write(self, folder, *moved):
                raise OSError(code, os.strerror(code), "x")

        manager.begin(Learner(world, 2), {"step": 2}, 2, [lambda: [Failing(f"{world.rank}.json", content=b"")]])
        return [refusal(manager.wait)]

    for (error,) in on_ranks(2, work):
        assert not isinstance(error, TransientError) and "x may not be written" in str(error)


def test_an_error_of_rank_0_is_said_also_when_latest_cannot_be_read(tmp_path, monkeypatch):
    manager = saved(tmp_path, 1)
    monkeypatch.setattr(step_folders, "publish", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    monkeypatch.setattr(step_folders, "named", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "again")))
    error = refusal(lambda: manager.save(Learner(value=2), {"step": 2}, 2))
    assert isinstance(error, TransientError) and "newest complete checkpoint: not known" in str(error)


def test_the_save_of_a_run_that_ends_is_tried_after_one_that_failed(tmp_path, caplog):
    def work(world):
        manager = saved(tmp_path, 1, world=world)
        manager.begin(Learner(world, 2), {"step": 2}, 2, flaky(99) if world.rank else [])
        manager._attempt.writing.wait()
        manager.save(Learner(world, 3), {"step": 3}, 3)
        return manager.find("auto").name

    assert on_ranks(2, work) == ["step-00000003"] * 2
    assert "step 2 could not be written" in caplog.text and "Step 3 is saved now." in caplog.text


@pytest.mark.fault(
    "the file system fails while a checkpoint is read (EIO, ESTALE)",
    does="tried again; then exit code 1, and no older step is taken",
    lost="",
)
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_hashes_that_cannot_be_taken_are_no_damage(tmp_path, monkeypatch, code):
    on_ranks(2, lambda world: saved(tmp_path, 1, 2, world=world))
    failing(monkeypatch, contents, "sha256_of", "learner-rank-00001.safetensors", code)
    for (error,) in on_ranks(2, lambda world: [refusal(lambda: CheckpointManager(tmp_path, 2, world).find("auto"))]):
        assert isinstance(error, TransientCheckpointError) and os.strerror(code) in str(error)
        assert "is damaged" not in str(error) and "resume=" not in str(error)


def test_rights_that_are_lacking_are_neither_damage_nor_transient(tmp_path, monkeypatch):
    manager = saved(tmp_path, 1, 2)
    failing(monkeypatch, contents, "sha256_of", ".safetensors", errno.EACCES)
    error = refusal(lambda: manager.find("auto"))
    assert not isinstance(error, TransientError) and "Permission denied" in str(error) and "is damaged" not in str(error)


def test_a_read_that_fails_a_few_times_is_done_again(tmp_path, monkeypatch):
    manager = saved(tmp_path, 1, 2)
    hashes = failing(monkeypatch, contents, "sha256_of", ".safetensors", times=3)
    manifests = failing(monkeypatch, manifest, "read_object", "step-00000002/manifest.json", times=3)
    assert manager.find("auto").name == "step-00000002" and len(hashes) == len(manifests) == 3


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_a_manifest_that_is_not_given_makes_no_older_step_the_newest(tmp_path, monkeypatch, code):
    manager = saved(tmp_path, 10, 20, 30, keep=3)
    failing(monkeypatch, manifest, "read_object", "step-00000030/manifest.json", code)
    for work in (
        lambda: manager.find("auto"),
        lambda: runs.step_folder_of(tmp_path),
        lambda: manager.find(str(manager.folder / "step-00000030")),
        lambda: manager.save(Learner(value=21), {"step": 21}, 21),
    ):
        assert isinstance(refusal(work), TransientError) == (code == errno.EIO)
    assert names(manager) == ["latest", "step-00000010", "step-00000020", "step-00000030"]


def test_pruning_deletes_nothing_while_a_manifest_is_not_given(tmp_path, monkeypatch, caplog):
    manager = saved(tmp_path, 10, 20, 30, keep=9)
    failing(monkeypatch, manifest, "read_object", "step-00000020/manifest.json")
    step_folders.prune(manager.folder, 1, manager.folder / "step-00000030")
    assert names(manager) == ["latest", "step-00000010", "step-00000020", "step-00000030"]
    assert "No old checkpoint in" in caplog.text and "is deleted now" in caplog.text


def test_small_files_that_are_not_given_are_no_garbage(tmp_path, monkeypatch):
    manager = saved(tmp_path, 1)
    folder = manager.find("auto")
    failing(monkeypatch, runs, "read_object", "train_state.json")
    failing(monkeypatch, saved_learner, "read_object", "learner.json")
    for work in (lambda: manager.train_state(folder), lambda: SavedLearner(folder), lambda: manager.find("auto")):
        assert isinstance(refusal(work), TransientCheckpointError)


def test_a_run_that_ends_is_told_a_place_also_then(tmp_path, monkeypatch, caplog):
    manager = saved(tmp_path, 1)
    assert manager.of_the_same_command("auto").endswith("step-00000001")
    failing(monkeypatch, manifest, "read_object", "manifest.json")
    assert manager.of_the_same_command("auto") == str(manager.folder) and "is not known" in caplog.text
