"""Checks the content of a checkpoint before anything of it is used: every file against the sha256 in its manifest."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from pathlib import Path

from megaunigame.checkpoint.manifest import REMEDY, Manifest
from megaunigame.errors import CheckpointError
from megaunigame.parallel.ranks import Ranks
from megaunigame.storage.pending import WrittenFile, sha256_of

OF_RANK = re.compile(r".+-rank-(\d+)\.\w+")
"""Names of files that every rank writes one of."""
QUIET_SECONDS = 10.0
"""Between two lines that say how far the check is."""
log = logging.getLogger(__name__)


def check_everywhere(folder: Path, manifest: Manifest, world: Ranks, remedy: str = REMEDY) -> None:
    """Collective: every rank checks its share of the files. Raises CheckpointError on every rank, naming what is damaged.

    At the number of ranks that saved, each checks the files it will read; those of all are checked by rank 0.
    """
    ours = [file for file in manifest.files.values() if _rank_of(file.name) % world.size == world.rank]
    everywhere = world.gather_object(damaged(folder, ours, say=world.is_main))
    problems = world.broadcast_object([problem for found in everywhere for problem in found])
    if problems:
        raise CheckpointError(_message(folder, problems, remedy))


def check_here(folder: Path, manifest: Manifest) -> None:
    """The same in one process."""
    problems = damaged(folder, manifest.files.values(), say=True)
    if problems:
        raise CheckpointError(_message(folder, problems, REMEDY))


def damaged(folder: Path, files: Iterable[WrittenFile], *, say: bool) -> list[str]:
    """What is wrong with these files, in words; `say`: also how far it is, when it takes long."""
    files, problems = list(files), []
    total, done, said = sum(file.bytes for file in files), 0, time.monotonic()
    for file in files:
        try:
            if sha256_of(folder / file.name) != file.sha256:
                problems.append(f"{file.name} has another content than when it was saved")
        except OSError as error:
            problems.append(f"{file.name} cannot be read ({error.strerror})")
        done += file.bytes
        if say and time.monotonic() - said > QUIET_SECONDS:
            log.warning("checking %s: %.1f of %.1f GB", folder.name, done / 1e9, total / 1e9)
            said = time.monotonic()
    return problems


def _rank_of(name: str) -> int:
    match = OF_RANK.fullmatch(name)
    return int(match[1]) if match else 0


def _message(folder: Path, problems: list[str], remedy: str) -> str:
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return f"Checkpoint {folder} is damaged: {'; '.join(problems[:3])}{more}. {remedy}"
