"""A learner of a few bytes, and an operating system whose calls fail or after which the process is gone."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from megaunigame.checkpoint import learner_files
from megaunigame.checkpoint.manager import CheckpointManager
from megaunigame.checkpoint.saved_learner import DESCRIPTION, FILE, as_json
from megaunigame.parallel.ranks import Ranks
from megaunigame.storage.pending import PendingFile
from tests.worlds import OneRank


class Learner:
    """Its only weight is `value`."""

    def __init__(self, world: Ranks | None = None, value: int = 0):
        self.world, self.value = world or OneRank(), value


def pending_files(learner: Learner) -> list[PendingFile]:
    files = [PendingFile(FILE.format(learner.world.rank), {"weight": torch.full((40,), float(learner.value))})]
    return [*files, PendingFile(DESCRIPTION, content=as_json(1, 0, {}).encode())] if learner.world.is_main else files


@pytest.fixture
def small_learner(monkeypatch):
    monkeypatch.setattr(learner_files, "pending_files", pending_files)
    monkeypatch.setattr(learner_files, "signature", lambda learner: "same model")


def saved(folder: Path, *steps: int, keep: int = 2, world: Ranks | None = None) -> CheckpointManager:
    """A manager that has saved these steps; the weight is the step."""
    world = world or OneRank()
    manager = CheckpointManager(folder, keep, world)
    for step in steps:
        manager.save(Learner(world, step), {"step": step}, step)
    return manager


def names(manager: CheckpointManager) -> list[str]:
    return sorted(path.name for path in manager.folder.iterdir()) if manager.folder.is_dir() else []


class Killed(BaseException):
    """The process is gone."""


CALLS = ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir", "open")


@contextmanager
def failing_at(number: int | None, monkeypatch, inside: Path, error: Callable[[], BaseException]) -> Iterator[list[str]]:
    """The call `number` of the operating system that changes files raises `error`; `Killed`: so does every later one.

    Yields the calls so far. Other threads count too. Calls that have nothing to do with `inside` are not counted.
    """
    calls: list[str] = []

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            is_name = isinstance(given[0], str | Path)
            if is_name and not str(given[0]).startswith(str(inside)) and "dir_fd" not in named:
                return original(*given, **named)
            if name == "builtins.open" and not (len(given) > 1 and "w" in given[1]):
                return original(*given, **named)
            calls.append(name)
            if number is not None and (len(calls) - 1 == number or len(calls) > number and isinstance(error(), Killed)):
                raise error()
            return original(*given, **named)

        return call

    with monkeypatch.context() as patched:
        for name in CALLS:
            patched.setattr(os, name, wrapped(name, getattr(os, name)))
        patched.setattr(builtins, "open", wrapped("builtins.open", builtins.open))
        yield calls
