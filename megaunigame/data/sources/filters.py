"""Filters of samples by their columns and fields in the index: `clip_similarity >= 0.28`, `has depth.png`; and `not in FILE`.

Filters apply before the order is made, so the number of samples left is the same on every rank.
"""

from __future__ import annotations

import hashlib
import logging
import math
import operator
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from megaunigame.data.decode import IMAGE_FIELDS
from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.shards.table import ShardTable
from megaunigame.data.sources.exclusion import Exclusion, read_exclusion
from megaunigame.errors import ConfigError, DataError

COMPARISONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
COMPARED = re.compile(r"([A-Za-z_][\w.-]*)\s*(>=|<=|==|!=|>|<)\s*(\S+)")
PRESENT = re.compile(r"has\s+([\w.-]+)")
EXCLUDED = re.compile(r"not\s+in\s+(\S.*)")
ANY_IMAGE = "image"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """`COLUMN OP NUMBER`. A sample without the column does not pass, for any operator."""

    column: str
    sign: str
    number: float

    def passing(self, table: ShardTable, shard: str) -> np.ndarray:
        """(n,) bool."""
        if self.column not in table.columns:
            return np.zeros(len(table), dtype=bool)
        values = table.columns[self.column]
        return COMPARISONS[self.sign](values, self.number) & ~np.isnan(values)

    def __str__(self) -> str:
        return f"{self.column} {self.sign} {self.number:g}"


@dataclass(frozen=True)
class Presence:
    """`has FIELD`; `has image` is any of the image fields."""

    field: str

    def passing(self, table: ShardTable, shard: str) -> np.ndarray:
        """(n,) bool."""
        wanted = IMAGE_FIELDS if self.field == ANY_IMAGE else (self.field,)
        return np.any([table.has(field) for field in wanted], axis=0)

    def __str__(self) -> str:
        return f"has {self.field}"


Filter = Comparison | Presence | Exclusion


def parse_filter(text: str) -> Filter:
    """`COLUMN OP NUMBER`, `has FIELD` or `not in FILE`. Raises ConfigError, and DataError for a file that cannot be used."""
    if excluded := EXCLUDED.fullmatch(text.strip()):
        return read_exclusion(excluded[1])
    if present := PRESENT.fullmatch(text.strip()):
        return Presence(present[1])
    if compared := COMPARED.fullmatch(text.strip()):
        column, sign, literal = compared.groups()
        try:
            number = float(literal)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return Comparison(column, sign, number)
    raise ConfigError(
        f"{text!r} is not a filter. Write a column, one of {', '.join(COMPARISONS)} and a number, for example "
        "'clip_similarity >= 0.28'; or 'has FIELD', for example 'has depth.png' or 'has image'; or 'not in FILE', for example "
        "'not in runs/a/quarantine.jsonl'."
    )


@dataclass(frozen=True)
class Selection:
    """The samples that pass all filters, one bit per sample of the data set."""

    bits: list[bytes]
    """Of each shard."""
    counts: np.ndarray
    """(shards,) int64: samples of each shard that pass."""

    def index(self, shard: int, i: int) -> int:
        """Index within the shard of its i-th sample that passes."""
        return int(_passing(self.bits[shard])[i])

    def indices(self, shard: int, i: np.ndarray) -> np.ndarray:
        """(n,) int32: `index` of each of `i`, (n,) int64."""
        return _passing(self.bits[shard])[i]

    def digest(self) -> str:
        """sha256 of the selection."""
        digest = hashlib.sha256()
        for bits in self.bits:
            digest.update(len(bits).to_bytes(8, "little") + bits)
        return digest.hexdigest()


@lru_cache(maxsize=64)
def _passing(bits: bytes) -> np.ndarray:
    """(n,) int32: indices within a shard of the samples that pass."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8))).astype(np.int32)


def select(index: ShardIndex, filters: Sequence[Filter]) -> Selection:
    """The samples of `index` that pass all `filters`; reads the index of every shard.

    Raises DataError when a filter names a column or field that no sample has, or when nothing passes.
    """
    began = time.perf_counter()
    columns: set[str] = set()
    bits, counts = [], []
    passed_alone = np.zeros(len(filters), dtype=np.int64)
    for shard, table in enumerate(index.tables()):
        columns.update(table.columns)
        passing = np.array([f.passing(table, index.name(shard)) for f in filters])
        passed_alone += passing.sum(axis=1)
        kept = passing.all(axis=0)
        bits.append(np.packbits(kept).tobytes())
        counts.append(int(kept.sum()))
    _check_names(index, filters, columns)
    for f, passed in zip(filters, passed_alone, strict=True):
        if isinstance(f, Exclusion) and passed == index.samples:
            log.warning("%s: no sample of it is in the file of '%s'.", index.location, f)
    if not any(counts):
        alone = ", ".join(f"'{f}' passes {n:,}" for f, n in zip(filters, passed_alone, strict=True))
        raise DataError(f"{index.location}: none of {index.samples:,} samples passes `where`. By itself, {alone}. Loosen them.")
    rule = " and ".join(map(str, filters))
    seconds = time.perf_counter() - began
    log.info("%s: %s of %s samples pass %s (%.1f s).", index.location, f"{sum(counts):,}", f"{index.samples:,}", rule, seconds)
    return Selection(bits, np.array(counts, dtype=np.int64))


def _check_names(index: ShardIndex, filters: Sequence[Filter], columns: set[str]) -> None:
    for f in filters:
        if isinstance(f, Comparison) and f.column not in columns:
            legal = ", ".join(sorted(columns)) or "none; data_prep makes them of the numbers in the samples' JSON"
            raise DataError(f"{index.location}: no sample has the column of the filter '{f}'. Columns: {legal}.")
        if isinstance(f, Presence) and f.field != ANY_IMAGE and f.field not in index.fields:
            raise DataError(f"{index.location}: no sample has the field of '{f}'. Fields: image, {', '.join(index.fields)}.")
