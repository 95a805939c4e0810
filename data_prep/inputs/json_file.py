"""JSON files named on the command line."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from megaunigame.errors import DataError


def sha256_of(path: Path, option: str) -> str:
    """Raises DataError when the file cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        url = "; it seems to be a URL: download the file first" if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)) else ""
        raise DataError(f"{option} {path}: cannot be read ({error.strerror}){url}") from error


def read_unchanged(path: Path, option: str, sha256: str) -> bytes:
    """The content. Raises DataError when its hash has changed."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{option} {path}: was changed while it was being packed; run the command again")
    return content


def read_json(path: Path, option: str, sha256: str) -> Any:
    """The value in the file. Raises DataError when it is not JSON, or when the hash has changed."""
    try:
        return json.loads(read_unchanged(path, option, sha256))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{option} {path}: not JSON ({error})") from error


def require_folder(path: Path, option: str) -> None:
    if not path.is_dir():
        raise DataError(f"{option} {path}: no such folder")
