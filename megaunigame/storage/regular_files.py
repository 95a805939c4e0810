"""Files that somebody else named: only regular ones are read, within a limit."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_regular(path: Path, largest: int) -> bytes:
    """The content of a file of at most `largest` bytes. Raises OSError; ValueError, with the reason, for a larger one and for
    what is not a regular file: a pipe would wait for its writer, a device may never end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a regular file")
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"it has more than the {largest:,} bytes that are read")
    return content
