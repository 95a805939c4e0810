"""Atomic writes of files, also if the writer is killed."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) and then move it to `path`; makes missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.tmp")
    fresh.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(fresh, path)
