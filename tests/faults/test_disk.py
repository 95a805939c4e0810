"""The disk of the run folder: full, or read-only. A small file system in memory is mounted for it, which needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.kills import LONGEST_LAUNCH, newest_step
from tests.faults.worlds import everything, recipe

SMALL, LARGE = "700k", "64m"
STEPS = 12


def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = mount("-t", "tmpfs", "-o", f"size={LARGE}", "tmpfs", str(folder))
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.fault(
    "disk full after some checkpoints",
    does="all ranks end with exit code 2 and one message that says so; the attempt is removed, older checkpoints stay; with "
    "room made, the same command goes on to the end",
    lost="work since the last save",
)
def test_a_full_disk_ends_the_run_in_words_and_costs_one_interval(server, home, disk):
    settings = everything(home, STEPS, evaluation={"suites": {}}, checkpoint={"every": 2, "keep": 99})
    command = [recipe(home, "full", settings)[0], f"output={disk / 'run'}"]
    mount("-o", f"remount,size={SMALL}", str(disk))
    launch = server.start(command, 2)
    codes = launch.wait(LONGEST_LAUNCH)
    assert set(codes.values()) == {2}, launch.said()
    assert "disk is full" in launch.everything() or "No space left" in launch.everything(), launch.said()
    assert "Traceback" not in launch.everything(), launch.said()
    last = newest_step(disk / "run")
    assert last is not None and 0 < last < STEPS, launch.said()
    assert list((disk / "run" / "checkpoints").glob("saving-*")) == []
    mount("-o", f"remount,size={LARGE}", str(disk))
    launch = server.start(command, 2)
    codes = launch.wait(LONGEST_LAUNCH)
    assert set(codes.values()) == {0} and f"after step {last}" in launch.everything(), launch.said()


@pytest.mark.faults
@pytest.mark.timeout(200)
@pytest.mark.fault(
    "run folder on a read-only disk, or its name taken by a file",
    does="exit code 2 before the model is loaded; one message names the folder",
    lost="",
)
def test_a_folder_that_cannot_be_written_is_named(server, home, disk):
    (disk / "file").write_text("")
    mount("-o", "remount,ro", str(disk))
    file = recipe(home, "read-only", everything(home, 2))[0]
    for output in (disk / "run", disk / "file"):
        launch = server.start([file, f"output={output}"], 2)
        codes = launch.wait(LONGEST_LAUNCH)
        assert set(codes.values()) == {2} and str(output) in launch.everything(), launch.said()
        assert "Traceback" not in launch.everything() and "rows per optimizer step" not in launch.everything(), launch.said()
