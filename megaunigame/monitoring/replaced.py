"""The section of a report on samples that the run has replaced."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from megaunigame.monitoring import page

QUARANTINE_FILE = "quarantine.jsonl"
SHOWN = 20
"""Shards."""


def replaced_section(lines: Sequence[dict[str, Any]]) -> list[page.Section]:
    """Shards with replaced samples, those with the most first; nothing when there are none."""
    by_shard: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        by_shard.setdefault((str(line.get("stream")), str(line.get("shard"))), []).append(line)
    if not by_shard:
        return []
    rows = []
    for (stream, shard), found in sorted(by_shard.items(), key=lambda entry: -len(entry[1]))[:SHOWN]:
        whole = next((line for line in found if line.get("key") == ""), None)
        samples = "the shard was lost" if whole else f"{len(found):,}"
        reason = str((whole or found[0]).get("reason"))
        rows.append([escape(stream), escape(shard), samples, escape(reason)])
    more = f" {len(by_shard) - SHOWN} more shards are in {QUARANTINE_FILE}." if len(by_shard) > SHOWN else ""
    legend = f"Others took their places. Each sample is in {QUARANTINE_FILE}, which a filter of a later run can name.{more}"
    table = page.table(["stream", "shard", "samples", "for example"], rows, [False, False, True, False])
    return [page.Section("Replaced samples", page.note(legend) + table)]
