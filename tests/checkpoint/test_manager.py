"""Which checkpoint a run goes on from: pruning, damage, `latest`, stray folders. The learner is a stand-in."""

from __future__ import annotations

import builtins
import json
import logging
import os
import random
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from megaunigame.checkpoint import contents, manifest, runs, starting, step_folders
from megaunigame.checkpoint.manager import CheckpointManager
from megaunigame.checkpoint.manifest import MANIFEST, TRAIN_STATE, read_manifest
from megaunigame.checkpoint.saved_learner import DESCRIPTION, FILE
from megaunigame.errors import CheckpointError, ConfigError
from megaunigame.storage import disk_errors
from megaunigame.storage.pending import sha256_of
from tests.checkpoint.stand_ins import Learner, names, saved, small_learner  # noqa: F401
from tests.worlds import OneRank, on_ranks

pytestmark = pytest.mark.usefixtures("small_learner")


def test_saves_points_and_prunes(tmp_path):
    manager = saved(tmp_path, 10, 20, 30)
    assert names(manager) == ["latest", "step-00000020", "step-00000030"]
    folder = manager.find("auto")
    assert manager.train_state(folder) == {"step": 30}
    listed = read_manifest(folder).files
    assert set(listed) == {path.name for path in folder.iterdir()} - {MANIFEST} == {FILE.format(0), DESCRIPTION, TRAIN_STATE}
    for name, file in listed.items():
        assert (file.bytes, file.sha256) == ((folder / name).stat().st_size, sha256_of(folder / name))


def test_going_back_to_an_older_step_keeps_what_is_written_next(tmp_path):
    manager = saved(tmp_path, 400, 500)
    for step in (400, 500):  # a clock that was ahead
        os.utime(manager.folder / f"step-{step:08d}" / MANIFEST, (2**33 + step, 2**33 + step))
    manager.save(Learner(value=100), {"step": 100}, 100)
    assert manager.find("auto").name == "step-00000100"
    assert names(manager) == ["latest", "step-00000100", "step-00000500"]


def test_a_newer_step_is_not_called_older(tmp_path):
    manager = saved(tmp_path, 1, 2)
    (manager.folder / "step-00000001" / FILE.format(0)).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-00000002, which was saved after it\.$"):
        manager.find(str(manager.folder / "step-00000001"))
    manager = saved(tmp_path / "back", 20, 30, 10, keep=3)  # 10 was saved last
    file = manager.folder / "step-00000010" / FILE.format(0)
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(
        CheckpointError, match=r"another content.*\. Type checkpoint\.resume=\S*step-00000030, which was saved before"
    ):
        manager.find("auto")
    (manager.folder / "step-00000020" / MANIFEST).write_bytes(b"{")
    with pytest.raises(CheckpointError, match=r"step-00000010, which was saved before it"):
        manager.find(str(manager.folder / "step-00000020"))


def test_the_best_checkpoint_is_kept_besides_the_newest(tmp_path, caplog):
    manager = saved(tmp_path, 10, 20, 30)
    assert not manager.has(10) and manager.has(20)
    manager.mark_best(20)
    for step in (40, 50, 60):
        manager.save(Learner(value=step), {"step": step}, step)
    assert names(manager) == ["best", "latest", *(f"step-000000{step}" for step in (20, 50, 60))]
    assert manager.find("auto").name == "step-00000060"
    manager.mark_best(60)
    assert names(manager) == ["best", "latest", "step-00000050", "step-00000060"], "the best before is an old one"
    manager.save(Learner(value=70), {"step": 70}, 70)
    assert names(manager) == ["best", "latest", "step-00000060", "step-00000070"], "among the newest it takes no more room"
    assert runs.step_folder_of(tmp_path, "best").name == "step-00000060" and not caplog.text
    assert manager.mark_best(60) and not manager.mark_best(20)
    assert "The best checkpoint, of step 20, is not in" in caplog.text
    assert names(manager) == ["latest", "step-00000060", "step-00000070"], "no other one is called the best"
    manager.unmark_best(70)


def test_the_best_of_a_save_that_is_being_written(tmp_path):
    manager = saved(tmp_path, 10, keep=1)
    manager.begin(Learner(value=20), {"step": 20}, 20)
    manager.mark_best(20)
    manager.save(Learner(value=30), {"step": 30}, 30)
    assert names(manager) == ["best", "latest", "step-00000020", "step-00000030"]


@pytest.mark.fault(
    "killed between the rename of a finished step and `latest`",
    does="goes on from that step, with a warning",
    lost="",
)
def test_what_was_saved_last_counts_not_what_latest_names(tmp_path, caplog):
    manager = saved(tmp_path, 10, 20)
    (manager.folder / "latest").write_text("step-00000010")
    assert manager.find("auto").name == "step-00000020"
    assert "latest names step-00000010, and step-00000020 was saved after it. The run goes on from" in caplog.text
    caplog.clear()
    manager = saved(tmp_path / "back", 10, 20, 15, keep=3)  # went back to 10
    (manager.folder / "latest").write_text("step-00000020")
    assert manager.find("auto").name == "step-00000015"
    (manager.folder / "latest").unlink()
    assert manager.find("auto").name == "step-00000015" and "latest is missing." in caplog.text


def test_pruning_goes_by_age_not_by_step_or_name(tmp_path):
    """Back from 30 to 10: what was saved next, 15 and 16, is younger than 20 and 30."""
    manager = saved(tmp_path, 10, 20, 30, keep=3)
    for step in (15, 16):
        CheckpointManager(tmp_path, 2, OneRank()).save(Learner(value=step), {"step": step}, step)
        assert f"step-{step:08d}" in names(manager)
    assert names(manager) == ["latest", "step-00000015", "step-00000016"]
    (manager.folder / "step-00000015" / MANIFEST).write_bytes(b"{")
    saved(tmp_path, 17)
    assert names(manager) == ["latest", "step-00000016", "step-00000017"], "who cannot be read is the oldest"


@pytest.mark.fault(
    "a job with checkpoint.resume=PATH or =never is requeued with the same command",
    does="goes on from what that command has saved, and says so",
    lost="work since the last save",
)
@pytest.mark.parametrize("there", ["here", "in another output"])
def test_going_back_counts_once(tmp_path, there):
    manager = saved(tmp_path / "run", 10, 20, 30, keep=9)
    other = manager if there == "here" else saved(tmp_path / "other", 10)
    back = str(other.folder / "step-00000010")
    for request, start in ((back, Path(back)), ("never", None)):
        assert manager.find(request) == start
        assert manager.of_the_same_command(request) == str(start or "")
        manager.save(Learner(value=15), {"step": 15, "resume": request}, 15)
        manager.save(Learner(value=18), {"step": 18, "resume": request}, 18)
        assert manager.find(request) == manager.find("auto") == manager.folder / "step-00000018"
        assert (
            manager.of_the_same_command(request) == manager.of_the_same_command("auto") == str(manager.folder / "step-00000018")
        )
        assert manager.find(request, once=False) == start, "an evaluation takes it at its word"
        assert manager.find(str(manager.folder / "step-00000020")) == manager.folder / "step-00000020", "another request"
        file = manager.folder / "step-00000018" / FILE.format(0)
        whole = file.read_bytes()
        file.write_bytes(bytes(len(whole)))
        with pytest.raises(CheckpointError, match=r"another content.*\. Delete \S*step-00000018, then give the same command"):
            manager.find(request)
        file.write_bytes(whole)
        state = manager.folder / "step-00000018" / TRAIN_STATE
        state.write_bytes(bytes(state.stat().st_size))
        assert manager.find(request) == start, "the newest cannot be read: that may be why this was typed"
        manager.save(Learner(value=20), {"step": 20, "resume": "auto"}, 20)
        assert manager.find(request) == start, "a launch in between makes it a new request"


def test_the_same_folder_typed_in_another_way_is_the_same_request(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manager = saved(tmp_path / "run", 10, 20, keep=9)
    typed = "run/checkpoints/step-00000010"
    manager.save(Learner(value=15), {"step": 15, "resume": typed}, 15)
    for again in (typed, f"{typed}/", f"./{typed}", str(tmp_path / typed)):
        assert manager.find(again) == manager.folder / "step-00000015", again
        assert manager.of_the_same_command(again) == str(manager.folder / "step-00000015")
    other = manager.folder / "step-00000020"
    assert manager.find(str(other)) == other


def test_resume_settings(tmp_path):
    manager = saved(tmp_path / "a")
    assert manager.find("auto") is None
    folder = manager.save(Learner(), {"step": 1}, 1)
    assert manager.find("never") is None
    assert saved(tmp_path / "b").find(str(folder)) == folder
    assert CheckpointManager(tmp_path / "a", keep=2, world=OneRank(size=2)).find("auto") == folder


@pytest.mark.fault(
    "a bit of a checkpoint flipped, 150 tries",
    does="refused before anything is loaded, the file and an older step named",
    lost="",
)
def test_150_of_150_flipped_bits_are_noticed(tmp_path):
    manager = saved(tmp_path, 1, 2)
    folder, rng, sayings = manager.folder / "step-00000002", random.Random(0), set()
    files = sorted(folder.iterdir())
    for number in range(150):
        file = files[number % len(files)]
        whole = file.read_bytes()
        broken, bit = bytearray(whole), rng.randrange(8 * len(whole))
        broken[bit // 8] ^= 1 << bit % 8
        file.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"damaged|is not|older version") as caught:
            CheckpointManager(tmp_path, 2, OneRank()).find(str(folder))
        assert "step-00000001" in str(caught.value)
        sayings.add((file.name, "another content" in str(caught.value)))
        file.write_bytes(whole)
    assert manager.find(str(folder)) == folder
    assert {name for name, content in sayings if content} >= {FILE.format(0), TRAIN_STATE}


def test_damage_is_named_with_what_to_type(tmp_path):
    manager = saved(tmp_path, 1, 2, 3)
    folder = manager.folder / "step-00000003"
    (folder / FILE.format(0)).write_bytes(b"1" * 60)
    with pytest.raises(CheckpointError, match=r"learner-rank-00000\.safetensors has 60 bytes, its manifest says \d+") as caught:
        manager.find(str(folder))
    said = f" Type checkpoint.resume={manager.folder / 'step-00000002'}, which was saved before it."
    assert str(caught.value).endswith(said) and "Delete" not in str(caught.value), "one instruction"
    (manager.folder / "step-00000002" / TRAIN_STATE).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"No other checkpoint in .* is complete: give another `output`"):
        manager.find(str(folder))
    with pytest.raises(CheckpointError, match=r"No other checkpoint in .* is complete"):
        manager.find(str(manager.folder / "step-00000009"))
    (folder / TRAIN_STATE).unlink()
    (folder / FILE.format(0)).unlink()
    with pytest.raises(CheckpointError, match=r"learner-rank-00000\.safetensors is missing"):
        read_manifest(folder)


@pytest.mark.fault(
    "`latest` is missing, empty, garbage, or names a damaged step", does="goes on from the newest complete step", lost=""
)
@pytest.mark.parametrize("content", [None, b"", b"\xff\x00", b"../../elsewhere", b"step-00000099", b"step-00000003"])
def test_without_a_good_latest_the_newest_complete_step_is_taken(tmp_path, content, caplog):
    manager = saved(tmp_path, 1, 2, 3, keep=3)
    latest = manager.folder / "latest"
    latest.unlink() if content is None else latest.write_bytes(content)
    (manager.folder / "step-00000003" / DESCRIPTION).unlink()
    (manager.folder / "step-00000007").mkdir()  # a stray one
    assert manager.find("auto") == manager.folder / "step-00000002"
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "goes on from" in lines[0] and "step-00000002, the newest complete" in lines[0]
    assert runs.step_folder_of(tmp_path) == manager.folder / "step-00000002"


@pytest.mark.fault(
    "a file of the newest checkpoint is truncated or missing, or its manifest is garbage",
    does="goes on from the complete step saved before it, and says why the newest was passed over",
    lost="steps since that checkpoint",
)
@pytest.mark.parametrize("latest", ["step-00000001", "step-00000002"])
@pytest.mark.parametrize("damage", ["a file cut", "a file missing", "a manifest of garbage"])
def test_a_step_that_is_passed_over_is_named(tmp_path, damage, latest, caplog):
    manager = saved(tmp_path, 1, 2)
    folder = manager.folder / "step-00000002"
    (manager.folder / "latest").write_text(latest)
    if damage == "a file missing":
        (folder / FILE.format(0)).unlink()
    else:
        (folder / (FILE.format(0) if damage == "a file cut" else MANIFEST)).write_bytes(b"{")
    assert manager.find("auto").name == "step-00000001"
    (line,) = [record.getMessage() for record in caplog.records]
    what = "manifest.json is not the manifest" if "manifest" in damage else "step-00000002 is damaged: learner-rank-00000"
    assert line.count(what) == 1 and line.endswith("step-00000001, the newest complete checkpoint.")
    caplog.clear()
    manager.save(Learner(value=3), {"step": 3}, 3)
    assert manager.find("auto").name == "step-00000003"
    assert ("manifest.json is not" in caplog.text) == ("garbage" in damage and folder.is_dir()), "older ones do not matter"


@pytest.mark.fault("step folders, but none complete", does="refused: the run never begins again over them", lost="")
def test_incomplete_steps_are_never_begun_again_over(tmp_path):
    manager = saved(tmp_path, 1)
    (manager.folder / "step-00000001" / DESCRIPTION).write_bytes(b"")
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"learner\.json has 0 bytes.*No folder in .* complete.*give another `output`"
        ):
            manager.find("auto")
        (manager.folder / "latest").unlink(missing_ok=True)
    (manager.folder / "latest").write_text("step-00000001")
    (manager.folder / "step-00000001").rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"step-00000001 is not a complete checkpoint.*No folder in"):
        manager.find("auto")
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        runs.step_folder_of(tmp_path / "other")


@pytest.mark.fault("a folder without a manifest among the checkpoints", does="it is left alone", lost="")
def test_stray_folders_and_files_end_no_save(tmp_path):
    manager = saved(tmp_path)
    for stray in ("step-00000000", "step-99999999", "mine", "saving-mine"):
        (manager.folder / stray).mkdir(parents=True)
    (manager.folder / "step-00000005").write_text("a file")
    for step in (1, 2, 3):
        manager.save(Learner(value=step), {"step": step}, step)
    assert {"step-00000000", "step-99999999", "step-00000005", "mine", "saving-mine"} < set(names(manager))
    assert manager.find("auto").name == "step-00000003" and "step-00000001" not in names(manager)


@pytest.mark.parametrize("kind", ["a folder", "a file"])
def test_a_stray_that_has_the_name_of_a_step_is_renamed(tmp_path, kind, caplog):
    manager = saved(tmp_path, 1)
    stray = manager.folder / "step-00000002"
    file = stray if kind == "a file" else stray / "notes.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    for step in (2, 3, 4):
        manager.save(Learner(value=step), {"step": step}, step)
    (kept,) = manager.folder.glob("stray-step-00000002.*")
    assert (kept if kind == "a file" else kept / "notes.txt").read_text() == "mine" and str(kept) in caplog.text
    assert manager.find("auto").name == "step-00000004"


def test_what_cannot_be_deleted_stays_with_a_warning(tmp_path, monkeypatch, caplog):
    manager = saved(tmp_path, 1, keep=1)
    with monkeypatch.context() as patched:
        patched.setattr(step_folders.shutil, "rmtree", lambda path: (_ for _ in ()).throw(PermissionError(13, "no", str(path))))
        manager.save(Learner(value=2), {"step": 2}, 2)
    assert "deleting-step-00000001 could not be deleted" in caplog.text
    manager.save(Learner(value=3), {"step": 3}, 3)
    assert names(manager) == ["latest", "step-00000003"]


def test_a_step_that_lost_its_name_while_it_was_replaced_gets_it_back(tmp_path):
    manager = saved(tmp_path, 1, keep=1)
    (manager.folder / "step-00000001").rename(manager.folder / "deleting-step-00000001")
    manager.clear_leftovers()
    assert manager.find("auto").name == "step-00000001"


GARBAGE = {"empty": b"", "no JSON": b"{", "a list": b"[]", "another object": b'{"a": 1}', "nested": b"[" * 100_000}
GOOD = {"format": 2, "step": 1, "world_size": 1, "model": "", "files": {TRAIN_STATE: [2, "0" * 64]}}
WRONG = {
    "another format": ({"format": 3}, "format 3, this version reads 2"),
    "a step that is not a number": ({"step": True}, "step must be a whole number from 0"),
    "a negative step": ({"step": -1}, "step must be a whole number from 0"),
    "a huge step": ({"step": 10**30}, "step must be a whole number from 0"),
    "no ranks": ({"world_size": 0}, "world_size must be a whole number from 1"),
    "a model that is not a text": ({"model": 1}, "model must be a text"),
    "files that are a list": ({"files": []}, "files an object"),
    "a path": ({"files": {"../a": [1, "0" * 64]}}, "'../a' is not a plain file name"),
    "an absolute path": ({"files": {"/a": [1, "0" * 64]}}, "'/a' is not a plain file name"),
    "a hidden file": ({"files": {".a": [1, "0" * 64]}}, "'.a' is not a plain file name"),
    "a long name": ({"files": {"a" * 300: [1, "0" * 64]}}, "is not a plain file name"),
    "itself": ({"files": {"manifest.json": [1, "0" * 64]}}, "'manifest.json' is not a plain file name"),
    "a negative size": ({"files": {"a": [-1, "0" * 64]}}, r"files\.a must be \[bytes, sha256\]"),
    "three numbers": ({"files": {"a": [1, "0" * 64, 1]}}, r"files\.a must be \[bytes, sha256\]"),
    "no hash": ({"files": {"a": [1, "x"]}}, r"files\.a has no sha256"),
    "no state": ({"files": {"a": [1, "0" * 64]}}, r"no train_state\.json among its files"),
    "a file that is not there": ({}, r"train_state\.json has 14 bytes, its manifest says 2"),
}


@pytest.mark.fault("manifest.json is garbage", does="refused, the file named", lost="")
@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_garbage_in_a_manifest_is_named(tmp_path, content):
    manager = saved(tmp_path, 1)
    folder = manager.folder / "step-00000001"
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json is not the manifest of a checkpoint") as caught:
        manager.find("auto")
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 1200


@pytest.mark.parametrize(("changed", "message"), WRONG.values(), ids=WRONG)
def test_what_a_manifest_may_not_say(tmp_path, changed, message):
    manager = saved(tmp_path, 1)
    entries = {**GOOD, **changed}
    entries["sha256"] = manifest._hash(entries)
    (manager.folder / "step-00000001" / MANIFEST).write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match=message):
        manager.find("auto")


def test_the_first_format_is_refused_with_the_way_out(tmp_path):
    folder = saved(tmp_path, 1).folder / "step-00000001"
    (folder / MANIFEST).write_text('{"step": 1, "world_size": 1, "model": "x", "files": {"a.pt": 3}}')
    with pytest.raises(CheckpointError, match="saved by an older version .*megaunigame export.*model.weights_from=EXPORTED"):
        CheckpointManager(tmp_path, 2, OneRank()).find(str(folder))


def test_a_changed_entry_of_a_manifest_is_noticed(tmp_path):
    folder = saved(tmp_path, 7).find("auto")
    entries = json.loads((folder / MANIFEST).read_text())
    for name, value in (("step", 8), ("world_size", 2), ("model", "other")):
        with pytest.raises(CheckpointError, match="entries are not those that were written"):
            manifest.parsed({**entries, name: value}, folder / MANIFEST)


@pytest.mark.fault("train_state.json is garbage of the right size", does="refused, the file named", lost="")
def test_garbage_in_the_state_is_named(tmp_path):
    manager = saved(tmp_path, 1)
    folder = manager.find("auto")
    state = folder / TRAIN_STATE
    state.write_bytes(b"x" * state.stat().st_size)
    with pytest.raises(CheckpointError, match=r"train_state\.json has another content than when it was saved"):
        manager.find("auto")
    with pytest.raises(CheckpointError, match=r"train_state\.json is not the state of a run"):
        manager.train_state(folder)


def test_a_run_that_is_opened_and_weights_to_begin_with_are_checked_too(tmp_path):
    folder = saved(tmp_path, 1).find("auto")
    file = folder / FILE.format(0)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="another content"):
        runs.open_run(folder)
    for error in on_ranks(2, lambda world: refusal(folder, world)):
        assert "another content" in error


def refusal(folder, world) -> str:
    with pytest.raises(CheckpointError) as caught:
        starting.checked_start(None, "", str(folder), world)
    return str(caught.value)


def test_every_rank_checks_what_it_will_read(tmp_path, monkeypatch):
    """At any number of ranks every file is checked once, and all ranks are told."""
    on_ranks(3, lambda world: saved(tmp_path, 1, world=world))
    folder = tmp_path / "checkpoints" / "step-00000001"
    hashed: list[tuple[str, str]] = []
    monkeypatch.setattr(
        contents, "sha256_of", lambda path, _: hashed.append((threading.current_thread().name, path.name)) or sha256_of(path)
    )
    for size in (3, 2, 1, 5):
        hashed.clear()
        on_ranks(size, lambda world: CheckpointManager(tmp_path, 2, world).find("auto"))
        assert sorted(name for _, name in hashed) == sorted(read_manifest(folder).files)
        assert len({thread for thread, name in hashed if "rank" in name}) == min(size, 3)
    (folder / FILE.format(2)).write_bytes(bytes((folder / FILE.format(2)).stat().st_size))
    for message in on_ranks(3, lambda world: damage(tmp_path, world)):
        assert "learner-rank-00002.safetensors has another content" in message


def damage(folder, world) -> str:
    with pytest.raises(CheckpointError) as caught:
        CheckpointManager(folder, 2, world).find("auto")
    return str(caught.value)


def test_metadata_calls_of_a_resume_grow_with_the_ranks_not_with_their_square(tmp_path, monkeypatch):
    def calls(size: int) -> int:
        folder, count = tmp_path / str(size), [0]
        on_ranks(size, lambda world: saved(folder, 1, world=world))

        def counting(original):
            def call(*given, **named):
                count[0] += 1
                return original(*given, **named)

            return call

        with monkeypatch.context() as patched:
            for name in ("stat", "lstat", "listdir", "scandir", "open"):
                patched.setattr(os, name, counting(getattr(os, name)))
            patched.setattr(builtins, "open", counting(builtins.open))
            on_ranks(size, lambda world: resume(folder, world))
        return count[0]

    def resume(folder, world):
        manager = CheckpointManager(folder, 2, world)
        manager.train_state(manager.find("auto"))

    few, many = calls(4), calls(16)
    assert many - few <= 4 * (16 - 4), (few, many)


def test_a_check_that_takes_long_says_how_far_it_is(tmp_path, monkeypatch, caplog):
    folder = saved(tmp_path, 1).find("auto")
    monkeypatch.setattr(contents, "QUIET_SECONDS", -1.0)
    with caplog.at_level(logging.WARNING):
        contents.check_here(folder, read_manifest(folder))
    assert "checking step-00000001: 0.0 of 0.0 GB" in caplog.text


@pytest.mark.fault(
    "too little room on the disk for one checkpoint", does="refused before step 1; a warning when `keep` do not fit", lost=""
)
def test_room_before_training(tmp_path, monkeypatch, caplog):
    manager = saved(tmp_path, 1, keep=2)
    monkeypatch.setattr(disk_errors.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000))
    manager.check_room(500)
    assert caplog.text == ""
    manager.check_room(600)  # two more are to come before the first deletion
    assert "1,000 bytes free; checkpoint.keep=2 needs about 1,200 more" in caplog.text
    with pytest.raises(CheckpointError, match=r"has 1,000 bytes free, and a checkpoint of this run needs about 1,001.*output"):
        manager.check_room(1_001)
    with pytest.raises(
        CheckpointError, match=r"step 2 could not be written .*the disk is full: 1,\d{3} bytes needed, 1,000 free"
    ):
        big = Learner(value=2)
        manager.save(big, {"step": 2, "more": "x" * 1_000}, 2)
    assert manager.find("auto").name == "step-00000001" and names(manager) == ["latest", "step-00000001"]
    assert disk_errors.free_bytes(tmp_path / "not" / "there") == 1_000
