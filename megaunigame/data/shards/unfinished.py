"""Folders that `megaunigame prepare` began and did not finish: any other reader would take them, though samples are missing.

Such a folder has no `dataset.json`, and one of: the note that data_prep leaves while it works, its statistics of a shard, or
its list of failed entries. Statistics of other tools (img2dataset) have another content and do not count.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

from megaunigame.data.shards.manifest import MANIFEST
from megaunigame.errors import DataError
from megaunigame.storage.json_files import LARGEST

WORKING = "unfinished.json"
"""There from the first shard until `dataset.json` is complete: {"command": what to type, "shards": their number}."""
FAILURES = "failures.jsonl"
"""A line per entry that could not be stored."""
COMMAND = "the same `megaunigame prepare` command"
OURS = re.compile(r".+-\d{6}_stats\.json")


def check_finished(folder: Path) -> None:
    """Raises DataError, with what to type, for a folder that data_prep has begun and not finished."""
    if not folder.is_dir() or (folder / MANIFEST).is_file():
        return
    note, failed = _object(folder / WORKING), _failures(folder)
    there = [stats for path in folder.glob("*_stats.json") if (stats := _statistics(path)) is not None]
    if note is None and not there and not failed:
        return
    note = note or {}
    total = note.get("shards")
    shards = f"{len(there)} of {total} shards" if isinstance(total, int) else f"{len(there)} shards"
    said = f"{folder} is not finished: it has no {MANIFEST} ({shards} are done), so samples would be missing. "
    typed = f"Type {_ours(note.get('command'))} again: it makes what is missing."
    if failed:
        entries = failed + sum(stats["samples"] for stats in there)
        allow = math.ceil(1e4 * failed / entries) / 1e4
        typed += (
            f" {failed} entries failed ({FAILURES}): fix them and add --retry-failed, or add --max-failed-fraction {allow:g} "
            "to leave them out."
        )
    raise DataError(said + typed)


def _statistics(path: Path) -> dict[str, Any] | None:
    """The statistics that data_prep wrote next to a shard; None for those of another tool."""
    stats = _object(path) if OURS.fullmatch(path.name) else None
    ours = stats is not None and "config_hash" in stats and isinstance(stats.get("samples"), int) and stats["samples"] >= 0
    return stats if ours else None


def _ours(command: Any) -> str:
    """The command, if data_prep could have written it: the folder may be anybody's, and a message must not advise others."""
    try:
        words = shlex.split(command) if isinstance(command, str) and command.isprintable() else []
    except ValueError:
        words = []
    return command if words[:2] == ["megaunigame", "prepare"] and shlex.join(words) == command else COMMAND


def _failures(folder: Path) -> int:
    """Number of lines of the list of failures, if it is ours."""
    try:
        lines = (folder / FAILURES).read_text().splitlines()
        ours = bool(lines) and {"key", "reason"} <= json.loads(lines[0]).keys()
    except (OSError, ValueError, AttributeError, RecursionError):  # no such file, or one of another tool
        return 0
    return len(lines) if ours else 0


def _object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None when there is none, or when it is being written."""
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
