"""A damaged file of a checkpoint is noticed before anything of it is used, whichever file it is, however it is damaged."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megaunigame.checkpoint.manager import CheckpointManager
from megaunigame.checkpoint.manifest import read_manifest
from megaunigame.errors import CheckpointError
from tests.faults.kills import LONGEST_LAUNCH
from tests.faults.worlds import everything, recipe, run_folder

STEPS = 4
FLIPS = 40
"""Bits of the manifest, which no other file has the hash of."""


@pytest.fixture(scope="module")
def trained(server, home) -> Path:
    """The run folder of two ranks with checkpoints of steps 2 and 4: weights, adversary, hard buffer, everything."""
    settings = everything(home, STEPS, evaluation={"suites": {}})
    launch = server.start(recipe(home, "damaged", settings), 2)
    codes = launch.wait(LONGEST_LAUNCH)
    assert set(codes.values()) == {0}, launch.said()
    return run_folder(home, "damaged")


def flip(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def cut(file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def remove(file: Path, rng: random.Random) -> None:
    file.unlink()


def empty(file: Path, rng: random.Random) -> None:
    file.write_bytes(b"")


def of_another_step(file: Path, rng: random.Random) -> None:
    shutil.copy(file.parents[1] / "step-00000002" / file.name, file)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    **{"a bit flipped": flip, "cut": cut, "removed": remove, "empty": empty, "of another step": of_another_step}
}


def found_in(run: Path, world) -> str:
    """The name of the step that a launch would resume; or the message with which it would end."""
    manager = CheckpointManager(run, 3, world)
    try:
        folder = manager.find("auto")
        manager.train_state(folder)
    except CheckpointError as error:
        return str(error)
    return folder.name


@pytest.mark.fault(
    "any file of a checkpoint: a bit flipped, cut, removed, empty, or replaced by that of another step",
    does="an older complete step is taken with a warning, or refused with the file named, before anything is loaded",
    lost="the damaged checkpoint",
)
@pytest.mark.timeout(200)
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_file_is_damaged_unnoticed(trained, world, tmp_path, measured, damage):
    names = sorted(file.name for file in (trained / "checkpoints" / "step-00000004").iterdir())
    assert "manifest.json" in names and len(names) >= 6
    for name in names:
        run = tmp_path / name
        shutil.copytree(trained / "checkpoints", run / "checkpoints")
        file = run / "checkpoints" / "step-00000004" / name
        whole = file.read_bytes()
        DAMAGES[damage](file, random.Random(f"{damage}/{name}"))
        if name == "manifest.json" and damage == "a bit flipped":
            continue  # the next test
        if file.exists() and file.read_bytes() == whole:
            continue  # the same in both steps
        found = found_in(run, world)
        assert found == "step-00000002" or name in found, f"{damage}: {name}: {found}"
    measured("files", len(names))


@pytest.mark.fault(
    "a bit of a manifest flipped",
    does="the step is refused or passed over, or the manifest still says the same",
    lost="the damaged checkpoint",
)
def test_a_flipped_bit_of_a_manifest_changes_nothing_unnoticed(trained, world, tmp_path, measured):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    file = tmp_path / "checkpoints" / "step-00000004" / "manifest.json"
    whole, before = file.read_bytes(), read_manifest(file.parent)
    accepted = []
    for number in range(FLIPS):
        flip(file, random.Random(number))
        if found_in(tmp_path, world) == "step-00000004" and read_manifest(file.parent) != before:
            accepted.append(read_manifest(file.parent))
        file.write_bytes(whole)
    assert accepted == []
    measured("flips", FLIPS)


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.fault(
    "a bit of the newest checkpoint flipped between two launches",
    does="the launch names the file and an older step, or goes on from that one",
    lost="the damaged checkpoint",
)
def test_a_launch_on_a_damaged_checkpoint(server, home, trained):
    run = run_folder(home, "damaged-launch")
    shutil.copytree(trained, run)
    newest = run / "checkpoints" / "step-00000004"
    file = newest / "learner-rank-00001.safetensors"
    flip(file, random.Random(0))
    command = recipe(home, "damaged-launch", everything(home, STEPS + 2, evaluation={"suites": {}}))
    launch = server.start(command, 2)
    codes = launch.wait(LONGEST_LAUNCH)
    if set(codes.values()) != {0}:
        assert set(codes.values()) == {2} and file.name in launch.everything(), launch.said()
        launch = server.start([*command, f"checkpoint.resume={run / 'checkpoints' / 'step-00000002'}"], 2)
        codes = launch.wait(LONGEST_LAUNCH)
    assert set(codes.values()) == {0} and "after step 2" in launch.everything(), launch.said()
