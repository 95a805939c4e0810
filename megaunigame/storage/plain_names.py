"""Names of files that were read from another file: one of them must never lead out of its folder."""

from __future__ import annotations

import re
from typing import Any

LONGEST_NAME = 255
"""Bytes; Linux has no longer ones."""
_MEANS_MORE = frozenset('/\\:*?"<>|')
"""Separators of folders, and what URLs, globs and chains of fsspec (`a::b`) read as more than a name."""
_UNREADABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udc7f\udd00-\udfff]")
"""Controls of a terminal, separators of lines, what turns the direction of writing, and halves of surrogate pairs that do not
stand for one byte."""


def is_plain_name(name: Any) -> bool:
    """Whether `name` is the name of one file in a folder: no path, no `..`, nothing but text."""
    return (
        isinstance(name, str)
        and name.isprintable()  # false for control characters and surrogates, so the name has UTF-8 bytes
        and not _MEANS_MORE & set(name)
        and not set(name) <= {".", " "}
        and 0 < len(name.encode()) <= LONGEST_NAME
    )


def readable(name: str) -> str:
    """A name as text that can be shown and written anywhere: bytes that are not UTF-8 (halves of surrogate pairs), and
    characters that control a terminal or the direction of writing, become U+FFFD."""
    return _UNREADABLE.sub("\ufffd", name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
