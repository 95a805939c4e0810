"""Saves on real ranks: the second writes slowly, or cannot write. Run as the other rank programs."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from megaunigame.errors import CheckpointError
from megaunigame.monitoring import names
from megaunigame.parallel.ranks import Ranks
from megaunigame.storage.pending import PendingFile, WrittenFile
from megaunigame.training.trainer import Trainer
from tests.multi_process.programs import play, trainer_of
from tests.multi_process.resume import STEPS, checkpoint_differences

SETTINGS: dict[str, Any] = {"schedule": {"steps": STEPS}, "checkpoint": {"every": 2, "keep": 9}, "evaluation": {"suites": {}}}
write = PendingFile.write


class Patched:
    """Rank 1 writes its files in another way."""

    def __init__(self, world: Ranks, instead: Any):
        self.world, self.instead = world, instead

    def __enter__(self) -> None:
        if self.world.rank == 1:
            PendingFile.write = self.instead  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        PendingFile.write = write  # type: ignore[method-assign]


def slowly(file: PendingFile, folder: Path, *moved: Any) -> WrittenFile:
    time.sleep(1.0)
    return write(file, folder, *moved)


def fails(file: PendingFile, folder: Path, *moved: Any) -> WrittenFile:
    if "step-00000004" in str(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(file, folder, *moved)


def lines(trainer: Trainer) -> list[dict[str, float]]:
    return [json.loads(line) for line in (trainer.folder / "metrics.jsonl").read_text().splitlines()]


def fitted(name: str, home: Path, world: Ranks) -> Trainer:
    trainer = trainer_of(name, home, world, **SETTINGS)
    trainer.fit()
    return trainer


def check(home: Path, world: Ranks) -> str:
    whole = fitted("saved-whole", home, world)
    with Patched(world, slowly):
        slow = fitted("saved-slowly", home, world)
    assert not checkpoint_differences(whole, slow)
    with Patched(world, fails), pytest.raises(CheckpointError, match="step 4 could not be written.*rank 1: the disk is full"):
        fitted("saved-parts", home, world)
    resumed = trainer_of("saved-parts", home, world, **SETTINGS)
    assert resumed.first_step == 2
    resumed.fit()
    assert not checkpoint_differences(whole, resumed)
    if world.is_main:
        assert sorted(path.name for path in (resumed.folder / "checkpoints").iterdir() if "saving" in path.name) == []
        for trainer in (whole, slow, resumed):
            logged = lines(trainer)
            assert [line["step"] for line in logged] == [*range(1, STEPS + 1)]
            pauses = [line[names.PERF_SAVE_PAUSE_SECONDS] for line in logged if names.PERF_SAVE_SECONDS in line]
            assert pauses and min(pauses) > 0
        assert max(line.get(names.PERF_SAVE_SECONDS, 0) for line in lines(slow)) >= 1.0
    return "agreed"


if __name__ == "__main__":
    play(lambda *_: "", {}, {"saving": check})
