"""Atomic writes of small files, also if the writer is killed or the power fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

NO_SUCH_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""What file systems answer that cannot flush a folder."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8), flush it to the disk, and then move it to `path`; makes missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.tmp")
    with open(fresh, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    flush_folder(path.parent)


def flush_file(file: Path) -> None:
    """Flush the content of a file that somebody else has closed, such as a copy."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Flush the names in `folder`: a renamed file keeps its new name if the power fails."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SUCH_FLUSH:
            raise
    finally:
        os.close(handle)
