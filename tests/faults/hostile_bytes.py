"""Hostile inputs for fuzzers: valid bytes that are damaged, and structures that are nearly right."""

from __future__ import annotations

import re
import struct
from typing import Any

from hypothesis import strategies as st

from megaunigame.storage.plain_names import readable

NUMBERS = (0, 1, -1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 1.5, -0.0, 1e308)
NAMES = (
    "",
    ".",
    "..",
    "../x.tar",
    "/etc/passwd",
    "a/b.tar",
    "a\\b",
    "a.tar",
    "a\0b",
    "\n",
    "\x1b[2J",
    "\ud800",
    "\udcff",
    "é" * 200,
)
INSERTED = (
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"[" * 1200,
    b'{"a":' * 500,
    b"9" * 5000,
    b"\\ud800",
    b"\xed\xa0\x80",
    b"-",
    b"1e999",
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, others: tuple[bytes, ...] = ()) -> bytes:
    """`whole` after one to four accidents: bits flipped, parts changed, cut, repeated, spliced with `others`, other numbers."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        size = len(data)
        at, length = draw(st.integers(0, max(0, size - 1))), draw(st.integers(1, 64))
        kind = draw(st.sampled_from(("flip", "set", "cut", "drop", "repeat", "insert", "splice", "number", "big")))
        if kind == "flip" and size:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            data[at : at + length] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * draw(st.integers(1, 50))
        elif kind == "insert":
            data[at:at] = draw(st.sampled_from(INSERTED))
        elif kind == "splice" and others:
            other = draw(st.sampled_from(others))
            start = draw(st.integers(0, max(0, len(other) - 1)))
            data[at : at + length] = other[start : start + length]
        elif kind == "number":
            found = [match.span() for match in re.finditer(rb"-?\d+", bytes(data))]
            if found:
                start, end = draw(st.sampled_from(found[:200]))
                data[start:end] = str(draw(st.sampled_from(NUMBERS))).encode()
        elif kind == "big":
            code = draw(st.sampled_from((">I", "<I", ">H", "<Q")))
            largest = 256 ** struct.calcsize(code) - 1
            data[at : at + struct.calcsize(code)] = struct.pack(code, draw(st.sampled_from((largest, largest // 2 + 1, 0))))
    return bytes(data)


def values(leaves: int = 12) -> st.SearchStrategy[Any]:
    """Any JSON value, hostile names and numbers among its leaves."""
    leaf = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(NAMES) | st.text(max_size=8)
    keys = st.sampled_from(
        ("key", "fields", "json", "file", "samples", "bytes", "from", "value", "role", "content", "type", "text", "image", "id")
    )
    return st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=leaves
    )


@st.composite
def changed(draw: st.DrawFn, valid: Any) -> Any:
    """`valid` with one to three of its values, anywhere, removed or replaced by any other."""
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(valid))
        if not places:
            return draw(values())
        valid = _replaced(valid, draw(st.sampled_from(places)), draw(st.none() | values(4)), draw(st.integers(0, 4)) == 0)
    return valid


def _places(value: Any, path: tuple = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield (*path, name)
        yield from _places(inner, (*path, name))


def _replaced(value: Any, path: tuple, new: Any, removed: bool) -> Any:
    copy = value.copy()
    if len(path) > 1:
        copy[path[0]] = _replaced(copy[path[0]], path[1:], new, removed)
    elif removed:
        del copy[path[0]]
    else:
        copy[path[0]] = new
    return copy


CONTROLS = ("\x1b[2J\x1b[1;31mok", "a\nERROR: b", "\r\x9b2J", "\u202egpj.exe", "\u2028next", "\x07\x08\x7f\x00")
"""Texts that would clear a terminal, begin a line of their own, or be shown in another order than they are written in."""


def showable(text: str) -> bool:
    """Whether a message may hold it: one line, without anything that controls a terminal."""
    return "\n" not in text and readable(text) == text
