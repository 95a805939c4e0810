"""`not in FILE`: leaves out the samples that an earlier run has replaced."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megaunigame.data.shards.table import ShardTable
from megaunigame.errors import DataError
from megaunigame.storage.json_lines import read_lines

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exclusion:
    """Samples of a `quarantine.jsonl`, by file name of the shard and key, wherever the shards are now."""

    path: str
    keys_of: Mapping[str, frozenset[str]]
    """File name of a shard -> keys; an empty one: the whole shard."""

    def passing(self, table: ShardTable, shard: str) -> np.ndarray:
        """(n,) bool."""
        out = self.keys_of.get(shard, frozenset())
        if not out or "" in out:
            return np.full(len(table), not out)
        return np.array([table.key(i) not in out for i in range(len(table))], dtype=bool)

    def __str__(self) -> str:
        return f"not in {self.path}"


def read_exclusion(path: str) -> Exclusion:
    """Raises DataError when the file is not there, or has no line of a replaced sample."""
    if not Path(path).is_file():
        raise DataError(f"'not in {path}': there is no such file. Give the quarantine.jsonl of a run folder.")
    keys_of: dict[str, set[str]] = {}
    lines = read_lines(Path(path))
    for line in lines:
        shard, key = line.get("shard"), line.get("key")
        if isinstance(shard, str) and isinstance(key, str):  # the shard of a mix has the name of its data set before it
            keys_of.setdefault(shard.rpartition("/")[2], set()).add(key)
    if not keys_of:
        raise DataError(
            f"'not in {path}': none of its {len(lines)} lines has a shard and a key. Give the quarantine.jsonl of a run folder."
        )
    return Exclusion(path, {shard: frozenset(keys) for shard, keys in keys_of.items()})
