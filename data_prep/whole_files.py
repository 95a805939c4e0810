"""Files that are either absent, old, or complete."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from megaunigame.errors import DataError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either absent, old, or complete, even when two processes write the same content at once.

    Raises DataError when it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(temporary, error) from error


def unwritable(temporary: Path, error: OSError) -> DataError:
    """Remove the half-written file (a full disk has room again) and make the error."""
    temporary.unlink(missing_ok=True)
    reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
    return DataError(
        f"{temporary.name.removesuffix('.tmp')} in {temporary.parent} cannot be written: {reason}. Nothing half-written is "
        "left; make room, then run the same command again: it continues with the shards that are missing"
    )
