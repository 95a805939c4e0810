"""Why a file could not be written, in words."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

BY_HAND = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
)
"""No room, no rights, or a name that is taken: the same call fails again until the user does something."""
NOT_A_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""The file system has answered, and there is no such file."""


def may_pass(error: OSError) -> bool:
    """Whether the same call may succeed later: EIO and ESTALE of a network file system, for example."""
    return error.errno not in BY_HAND


def in_words(error: OSError, folder: Path, needed: int | None = None) -> str:
    """One clause; `needed`: bytes that were to be written into `folder`."""
    if error.errno == errno.ENOSPC:
        return f"the disk is full: {'' if needed is None else f'{needed:,} bytes needed, '}{_free(folder)} free"
    if error.errno == errno.EDQUOT:
        return f"the quota of this user is used up{'' if needed is None else f': {needed:,} bytes needed'}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.filename or folder} may not be written ({error.strerror})"
    return f"{type(error).__name__}: {error}"


def free_bytes(folder: Path) -> int:
    """Free bytes of the file system that holds `folder`, or will hold it once it is made. Raises OSError."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def _free(folder: Path) -> str:
    try:
        return f"{free_bytes(folder):,}"
    except OSError:  # of the file system that has just failed: the first error is the one to be told
        return "an unknown number"
