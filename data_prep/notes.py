"""Notes: what a command left out or changed, in words, and how often. Every shard has some; the manifest adds them up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

MOST_NOTES = 20
REST = "other notes"


def notes_of(statistics: Iterable[dict[str, Any]]) -> dict[str, int]:
    """The notes of all shards together, the most frequent first."""
    notes: Counter[str] = Counter()
    for stats in statistics:
        notes.update(stats["notes"] if "notes" in stats else {})  # shards of an earlier version have none
    return bounded(notes)


def bounded(notes: Counter[str]) -> dict[str, int]:
    """The most frequent notes, and one line for the rest: every sample of a source may have its own."""
    named = [item for item in notes.items() if item[1] and item[0] != REST]
    ordered = sorted(named, key=lambda item: (-item[1], item[0]))
    rest = notes[REST] + sum(count for _, count in ordered[MOST_NOTES:])
    return dict(ordered[:MOST_NOTES]) | ({REST: rest} if rest else {})
