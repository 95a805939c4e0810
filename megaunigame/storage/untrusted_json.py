"""JSON that somebody else wrote: within limits, and with one kind of error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

DEEPEST = 64
"""Lists and objects inside each other, in a sample's JSON."""


def parse(content: bytes, largest: int) -> Any:
    """The value in `content`. Raises ValueError for more than `largest` bytes, what is not JSON, or is nested beyond what
    Python reads. Objects take up to 30 bytes of memory for each byte of JSON."""
    if len(content) > largest:
        raise ValueError(f"more than the {largest:,} bytes that are read")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_within(path: Path, largest: int) -> bytes:
    """The content of a file, or so much of it that `parse` refuses it. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(min(os.fstat(file.fileno()).st_size, largest) + 1)


def is_deeper_than(value: Any, deepest: int = DEEPEST) -> bool:
    """Whether more than `deepest` lists and objects are inside each other. Not recursive: it cannot fail itself."""
    level, depth = [value] if isinstance(value, dict | list) else [], 0
    while level and depth <= deepest:
        inside = (item for held in level for item in (held.values() if isinstance(held, dict) else held))
        level, depth = [item for item in inside if isinstance(item, dict | list)], depth + 1
    return depth > deepest
