"""A save that is killed, or fails, at any of its calls of the operating system."""

from __future__ import annotations

import errno
import os
import shutil
import threading

import pytest
from safetensors.torch import load_file

from megaunigame.checkpoint.manager import CheckpointManager
from megaunigame.checkpoint.saved_learner import FILE
from megaunigame.errors import CheckpointError
from tests.checkpoint.stand_ins import Killed, Learner, failing_at, names, saved, small_learner  # noqa: F401
from tests.worlds import OneRank

pytestmark = pytest.mark.usefixtures("small_learner")
CASES = {
    "the first save": ([], 20),
    "a save that deletes an older one": ([10, 15], 20),
    "a save of a step that is there": ([10, 20], 20),
    "a save of the only step": ([20], 20),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # hundreds of saves


def resumed(folder) -> tuple[CheckpointManager, int | None]:
    """What the same command does (launch/train.py, `Assembly`): it clears what was left, then looks where to go on from."""
    again = CheckpointManager(folder, 2, OneRank())
    again.clear_leftovers()
    found = again.find("auto")
    if found is None:
        return again, None
    step = again.train_state(found)["step"]
    assert found.name == f"step-{step:08d}"
    return again, step


def evaluated(folder) -> int | None:
    """The step that an evaluation finds, which clears nothing; None: it is told to start the training again."""
    try:
        found = CheckpointManager(folder, 2, OneRank()).find("auto")
    except CheckpointError as error:
        assert "is complete, but a kill has kept it from its name. Start the training again" in str(error)
        return None
    return None if found is None else int(found.name.removeprefix("step-"))


def weight(manager: CheckpointManager, step: int) -> float:
    return load_file(manager.folder / f"step-{step:08d}" / FILE.format(0))["weight"][0].item()


def calls_of_a_save(before, folder, monkeypatch) -> list[str]:
    manager = saved(folder, *before)
    with failing_at(None, monkeypatch, folder, Killed) as calls:
        manager.save(Learner(value=20), {"step": 20}, 20)
    return calls


@pytest.mark.fault(
    "killed at any moment of a save",
    does="the same command goes on from the newest complete checkpoint",
    lost="steps since that checkpoint",
)
@pytest.mark.parametrize(("before", "step"), CASES.values(), ids=CASES)
def test_a_kill_at_any_call_leaves_a_run_that_goes_on(before, step, tmp_path, monkeypatch):
    calls = calls_of_a_save(before, tmp_path / "all", monkeypatch)
    assert {"replace", "fsync", "builtins.open"} < set(calls) and len(calls) > 15
    for number in range(len(calls)):
        folder = tmp_path / str(number)
        manager = saved(folder, *before)
        with failing_at(number, monkeypatch, folder, Killed), pytest.raises((Killed, CheckpointError)):
            manager.save(Learner(value=20), {"step": 20}, step)
            raise Killed  # the process ends somewhere
        left = names(manager)
        as_evaluated = evaluated(folder)  # nothing was cleared yet
        again, found = resumed(folder)
        if before:
            assert found in {before[-1], step}, calls[number]
            assert as_evaluated is not None or (before == [step] and f"step-{step:08d}" not in left)
            if f"step-{step:08d}" in left and step not in before:
                assert found == as_evaluated == step, "it is complete, also if `latest` names another"
            others = [older for older in before if older != step]
            for older in others[-1:] if found == step else others:  # one more may have been deleted after the new one
                assert weight(again, older) == older
        elif any(path.startswith("step-") for path in names(again)):
            assert found == step, "its name is there: nothing may be lost"
        if found is not None:
            assert weight(again, found) == found
        again.save(Learner(value=20), {"step": 20}, step)
        assert names(again) == ["latest", *sorted({f"step-{s:08d}" for s in [*before, step]})[-2:]]
        assert resumed(folder)[1] == step and weight(again, step) == 20
        shutil.rmtree(folder)


@pytest.mark.fault(
    "disk full at any moment of a save",
    does="one line says how much is needed and free; the attempt is deleted",
    lost="the step",
)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_an_error_at_any_call_is_said_in_words_and_leaves_nothing_half(code, tmp_path, monkeypatch):
    calls = calls_of_a_save([10], tmp_path / "all", monkeypatch)
    said = set()
    for number in range(len(calls)):
        folder = tmp_path / str(number)
        manager = saved(folder, 10)
        with failing_at(number, monkeypatch, folder, lambda: OSError(code, os.strerror(code))):
            try:
                manager.save(Learner(value=20), {"step": 20}, 20)
            except CheckpointError as error:
                said.add(str(error).replace(str(folder), "FOLDER"))
                assert "step 20 could not be written" in str(error) and "give the same command again" in str(error)
        assert not [name for name in names(manager) if name.startswith("saving-")], calls[number]
        again, found = resumed(folder)
        assert found in {10, 20} and weight(again, found) == found
        manager.save(Learner(value=30), {"step": 30}, 30)
        assert resumed(folder)[1] == 30
        shutil.rmtree(folder)
    words = {errno.ENOSPC: "the disk is full: ", errno.EDQUOT: "quota of this user", errno.EACCES: "may not be written"}
    assert said and all(words[code] in message for message in said)


def test_everything_is_flushed_before_it_gets_its_name(tmp_path, monkeypatch):
    """A power cut: what has a name is on the disk, and names are there in their order."""
    manager, flushed, checks = saved(tmp_path, 1), set(), []
    replace = os.replace

    def flush(handle):
        flushed.add(os.fstat(handle).st_ino)

    def rename(old, new):
        if str(new).endswith("step-00000002"):
            inside = [old, *old.iterdir()]
            assert len(inside) == 5 and {path.stat().st_ino for path in inside} <= flushed
            flushed.discard(manager.folder.stat().st_ino)
            checks.append("folder")
        if str(new).endswith("latest"):
            assert manager.folder.stat().st_ino in flushed, "the new name could be lost while `latest` has it"
            checks.append("latest")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    manager.save(Learner(value=2), {"step": 2}, 2)
    assert checks == ["folder", "latest"]
