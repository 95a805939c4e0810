"""Checks the content of a checkpoint before anything of it is used: every file against the sha256 in its manifest."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megaunigame.checkpoint.manifest import REMEDY, Manifest
from megaunigame.checkpoint.unreadable import unreadable, why_not
from megaunigame.checkpoint.waiting import wait_for_all
from megaunigame.errors import CheckpointError
from megaunigame.parallel.ranks import Ranks
from megaunigame.storage.disk_errors import NOT_A_FILE, may_pass
from megaunigame.storage.pending import WrittenFile, sha256_of
from megaunigame.storage.retries import retried

OF_RANK = re.compile(r".+-rank-(\d+)\.\w+")
"""Names of files that every rank writes one of."""
QUIET_SECONDS = 10.0
"""Between two lines that say how far the check is."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file."""

    text: str
    damage: bool = True
    """False: the file system did not give the file, which may be as it was saved."""
    transient: bool = False
    """Of what is not damage: a later try may succeed."""


def check_everywhere(folder: Path, manifest: Manifest, world: Ranks, remedy: str = REMEDY) -> None:
    """Collective: every rank checks its share of the files. Raises CheckpointError on every rank, naming what is damaged, or
    what could not be read.

    At the number of ranks that saved, each checks the files it will read; those of all are checked by rank 0.
    """
    ours = [file for file in manifest.files.values() if _rank_of(file.name) % world.size == world.rank]
    check = _BackgroundCheck(folder, ours, say=world.is_main)
    wait_for_all(world, check, f"Checking {folder.name}")
    everywhere = world.gather_object(check.result())
    _refuse(folder, world.broadcast_object([problem for found in everywhere for problem in found]), remedy)


def check_here(folder: Path, manifest: Manifest) -> None:
    """The same in one process."""
    _refuse(folder, damaged(folder, manifest.files.values(), say=True), REMEDY)


class _BackgroundCheck:
    """`damaged` in a thread: the ranks tell each other how far they are."""

    def __init__(self, folder: Path, files: Iterable[WrittenFile], *, say: bool):
        self.moved = 0
        self._problems: list[Problem] = []
        self._error: Exception | None = None
        # The name: a rank that is a thread itself is known by it.
        name = f"check of {threading.current_thread().name}"
        self._thread = threading.Thread(target=self._check, args=(folder, files, say), daemon=True, name=name)
        self._thread.start()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> None:
        self._thread.join(seconds)

    def result(self) -> list[Problem]:
        """Raises what the check has raised."""
        if self._error is not None:
            raise self._error
        return self._problems

    def _check(self, folder: Path, files: Iterable[WrittenFile], say: bool) -> None:
        try:
            self._problems = damaged(folder, files, say=say, moved=self._count)
        except Exception as error:  # raised by `result`: nobody sees the traceback of a thread
            self._error = error

    def _count(self, size: int) -> None:
        self.moved += size


def damaged(
    folder: Path, files: Iterable[WrittenFile], *, say: bool, moved: Callable[[int], None] = lambda size: None
) -> list[Problem]:
    """What is wrong with these files; `say`: also how far it is, when it takes long. `moved`: as in `sha256_of`."""
    files, problems = list(files), []
    total, done, said = sum(file.bytes for file in files), 0, time.monotonic()
    for file in files:
        try:
            if retried(partial(sha256_of, folder / file.name, moved)) != file.sha256:
                problems.append(Problem(f"{file.name} has another content than when it was saved"))
        except OSError as error:
            gone = error.errno in NOT_A_FILE
            text = f"{file.name} cannot be read ({error.strerror if gone else why_not(error, folder)})"
            problems.append(Problem(text, damage=gone, transient=may_pass(error)))
        done += file.bytes
        if say and time.monotonic() - said > QUIET_SECONDS:
            log.warning("checking %s: %.1f of %.1f GB", folder.name, done / 1e9, total / 1e9)
            said = time.monotonic()
    return problems


def _rank_of(name: str) -> int:
    match = OF_RANK.fullmatch(name)
    return int(match[1]) if match else 0


def _refuse(folder: Path, problems: Sequence[Problem], remedy: str) -> None:
    """Raise CheckpointError for any problem: for damage first, which stays."""
    damage = [problem.text for problem in problems if problem.damage]
    if damage:
        raise CheckpointError(f"Checkpoint {folder} is damaged: {_first(damage)}. {remedy}")
    if problems:
        why = _first([problem.text for problem in problems])
        raise unreadable(folder, why, transient=all(problem.transient for problem in problems))


def _first(texts: Sequence[str]) -> str:
    return "; ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")
