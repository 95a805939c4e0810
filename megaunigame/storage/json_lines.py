"""Files with a JSON object per line that a run appends to: a power cut or a full disk may leave any line damaged."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in `path`; none without the file. A last line without a line break is still being written.

    Other lines that are not an object are left out, with one warning.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    objects, damaged = [], []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            objects.append(found)
        else:
            damaged.append(number)
    if damaged:
        log.warning("%s: %d damaged lines are left out, the first is line %d.", path, len(damaged), damaged[0])
    return objects


def as_lines(objects: list[dict[str, Any]]) -> str:
    """The text of such a file."""
    return "".join(json.dumps(entry) + "\n" for entry in objects)
