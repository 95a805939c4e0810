"""Errors of the file system while checkpoints are read. They say nothing about the content: no other step is taken instead."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megaunigame.errors import CheckpointError, TransientCheckpointError
from megaunigame.storage.disk_errors import in_words, may_pass


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """An OSError of the block becomes the CheckpointError of `unreadable`."""
    try:
        yield
    except OSError as error:
        raise unreadable(folder, why_not(error, folder), transient=may_pass(error)) from error


def why_not(error: OSError, folder: Path) -> str:
    """One clause."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{error.filename or folder}: {error.strerror}"
    return in_words(error, folder)


def unreadable(folder: Path, why: str, *, transient: bool) -> CheckpointError:
    """`transient`: the same command may succeed, and a launcher tries it again."""
    if not transient:
        return CheckpointError(f"{folder} cannot be used: {why}.")
    return TransientCheckpointError(
        f"{folder} cannot be read now: {why}. Nothing is known to be damaged: give the same command again when the file system "
        "answers."
    )
