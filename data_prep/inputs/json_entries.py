"""The entries of a JSON file in the forms in which such files exist.

A list of objects, or lists in a list; an object that holds one such list, or an object per entry; JSON lines. UTF-8 with or
without a byte order mark, UTF-16, UTF-32. Numbers that JSON does not have (NaN, Infinity) are read as null.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaunigame.errors import DataError
from megaunigame.storage.foreign_text import one_line
from megaunigame.storage.plain_names import is_plain_name

GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class BrokenLine:
    """A line of a JSON-lines file that is not JSON."""

    reason: str


def entries_of(content: bytes, path: Path, keys: Collection[str], form: str) -> list[Any]:
    """The entries, not looked into. An object with one of `keys` is an entry.

    Raises DataError, which says the wanted `form`, when the file is neither JSON nor mostly JSON lines, or has no list.
    """
    what = f"--json {path}"
    if content.startswith(GZIP):
        raise DataError(f"{what}: is compressed; unpack it: gunzip -k {path}, and give the file without .gz")
    encoding = json.detect_encoding(content)
    try:
        # Bytes that are not UTF-8 cost the entry that has them, which cannot be written again.
        text = content.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass")
    except UnicodeDecodeError as error:
        raise DataError(f"{what}: not {encoding} ({error}); wanted {form}") from error
    if not text.strip():
        raise DataError(f"{what}: the file is empty; wanted {form}")
    try:
        found = _parsed(text)
    except RecursionError as error:
        raise DataError(f"{what}: nested too deeply; wanted {form}") from error
    except ValueError as error:
        lines = _json_lines(text)
        if lines is None:
            raise DataError(f"{what}: not JSON ({error}), and not one JSON object per line; wanted {form}") from error
        return lines
    listed = _list_in(found, keys)
    try:
        entries = [] if listed is None else list(_flat(listed))
    except RecursionError as error:
        raise DataError(f"{what}: nested too deeply; wanted {form}") from error
    if not entries:
        _refuse_several_lists(found, what)
        got = (
            f"an object with the keys {one_line(', '.join(found), 160) or 'none'}" if isinstance(found, dict) else _named(found)
        )
        raise DataError(f"{what}: got {got}; wanted {form}")
    return entries


def _refuse_several_lists(found: Any, what: str) -> None:
    """Raises DataError for an object with a list of entries per split."""
    names = [name for name, value in found.items() if _has_entries(value)] if isinstance(found, dict) else []
    if len(names) > 1:
        file = what.partition(" ")[2]
        # A command to copy: a name may hold what a shell would run.
        first = names[0] if is_plain_name(names[0]) else "NAME"
        raise DataError(
            f"{what}: has several lists of entries: {one_line(', '.join(names))}. Write one to a file and give that: "
            f"jq {shlex.quote(f'.[{json.dumps(first)}]')} {file} > {shlex.quote(f'{first}.json')}"
        )


def _has_entries(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _parsed(text: str) -> Any:
    return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)


def _finite(number: str) -> float | None:
    return value if math.isfinite(value := float(number)) else None


def _json_lines(text: str) -> list[Any] | None:
    """The value of every line that is not empty; None unless most lines are JSON objects."""
    lines: list[Any] = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: texts may hold other line ends
        if not line.strip():
            continue
        try:
            lines.append(_parsed(line))
        except (ValueError, RecursionError) as error:
            lines.append(BrokenLine(f"line {number} is not JSON: {error}"))
    return lines if 2 * sum(isinstance(line, dict) for line in lines) > len(lines) else None


def _list_in(found: Any, keys: Collection[str]) -> list[Any] | None:
    if isinstance(found, list):
        return found
    if not isinstance(found, dict):
        return None
    if any(key in found for key in keys):
        return [found]
    lists = [value for value in found.values() if _has_entries(value)]
    if len(lists) == 1:
        return lists[0]
    if found and all(isinstance(value, dict) for value in found.values()):
        return [{"id": name, **value} for name, value in found.items()]
    return None


def _flat(listed: list[Any]) -> Iterator[Any]:
    for item in listed:
        if isinstance(item, list):
            yield from _flat(item)
        else:
            yield item


def _named(found: Any) -> str:
    return "an empty list" if isinstance(found, list) else f"a JSON {type(found).__name__}"
