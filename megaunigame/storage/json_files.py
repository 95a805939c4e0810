"""Small JSON files of a run, read back with an error that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megaunigame.errors import UserError
from megaunigame.storage.disk_errors import NOT_A_FILE
from megaunigame.storage.untrusted_json import parse, read_within

LARGEST = 64 * 1024**2
"""Bytes; a larger file is not one of ours."""


def read_object(path: Path, what: str, error: type[UserError], remedy: str, *, disk_errors: bool = False) -> dict[str, Any]:
    """The JSON object in `path`, which holds `what`.

    Raises `error`, ending with `remedy`, when the file cannot be read, is too large, is not JSON, or is not an object.
    `disk_errors`: an OSError that says nothing about the content is raised as it is.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():  # a pipe would wait, a device would never end
            raise ValueError("not a file")
        if size > LARGEST:
            raise ValueError(f"{size:,} bytes, more than {LARGEST:,}")
        content = parse(read_within(path, LARGEST), LARGEST)
    except (OSError, ValueError) as cause:  # JSON and UTF-8 errors are ValueErrors
        if disk_errors and isinstance(cause, OSError) and cause.errno not in NOT_A_FILE:
            raise
        raise error(f"{path} is not {what} ({type(cause).__name__}: {cause}). {remedy}") from cause
    if not isinstance(content, dict):
        raise error(f"{path} is not {what} (a JSON {type(content).__name__}, not an object). {remedy}")
    return content
