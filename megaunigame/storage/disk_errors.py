"""Why a file could not be written, in words."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path


def in_words(error: OSError, folder: Path, needed: int | None = None) -> str:
    """One clause; `needed`: bytes that were to be written into `folder`."""
    if error.errno == errno.ENOSPC:
        return f"the disk is full: {'' if needed is None else f'{needed:,} bytes needed, '}{free_bytes(folder):,} free"
    if error.errno == errno.EDQUOT:
        return f"the quota of this user is used up{'' if needed is None else f': {needed:,} bytes needed'}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.filename or folder} may not be written ({error.strerror})"
    return f"{type(error).__name__}: {error}"


def free_bytes(folder: Path) -> int:
    """Free bytes of the file system that holds `folder`, or will hold it once it is made. Raises OSError."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free
