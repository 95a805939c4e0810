"""Byte ranges of the samples in the tar of a shard: read from `idx.json`, or found by one scan of the headers."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megaunigame.data.shards.tar_scan import Spans, scan_tar
from megaunigame.errors import DataError

INDEX_VERSION = 1
ABSENT = -1


@dataclass(frozen=True)
class ShardTable:
    """Keys and byte ranges as arrays: about 16 bytes per field and sample, no object per sample."""

    keys: np.ndarray
    """(n,) byte strings as the tar has them: UTF-8, unless another tool wrote it."""
    fields: tuple[str, ...]
    """All fields of all samples, sorted."""
    spans: np.ndarray
    """(n, len(fields), 2) int64: offset and size in bytes; offset `ABSENT` if the sample lacks the field."""
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Name -> float64 (n,): a number of every sample's JSON, NaN if the sample has none. Empty for a scanned tar."""

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, i: int) -> str:
        return self.keys[i].decode("utf-8", "replace")

    def spans_of(self, i: int) -> Spans:
        rows = zip(self.fields, self.spans[i].tolist(), strict=True)
        return {field: (offset, size) for field, (offset, size) in rows if offset != ABSENT}

    def has(self, field: str) -> np.ndarray:
        """(n,) bool: whether each sample has the field."""
        if field not in self.fields:
            return np.zeros(len(self), dtype=bool)
        present: np.ndarray = self.spans[:, self.fields.index(field), 0] != ABSENT
        return present

    def end(self) -> int:
        """First byte after the last field: the file is at least this long."""
        return int(self.spans.sum(axis=-1).max(initial=0))

    def digest(self) -> str:
        """sha256 of keys and spans; the same for a read and a scanned table."""
        digest = hashlib.sha256(json.dumps([len(self), self.fields]).encode())
        digest.update(self.keys.tobytes())
        digest.update(self.spans.astype("<i8").tobytes())
        return digest.hexdigest()


def build_table(
    keys: Sequence[str], spans: Sequence[Mapping[str, Sequence[int]]], numbers: Sequence[Mapping[str, float]] = ()
) -> ShardTable:
    """The table of samples, from their keys, field -> (offset, size), and columns, if any."""
    fields = tuple(sorted({field for of_sample in spans for field in of_sample}))
    array = np.zeros((len(keys), len(fields), 2), dtype=np.int64)
    for c, field in enumerate(fields):
        array[:, c] = np.array([of_sample.get(field, (ABSENT, 0)) for of_sample in spans], dtype=np.int64)
    names = sorted({name for columns in numbers for name in columns})
    columns = {name: np.array([row.get(name, np.nan) for row in numbers], dtype=np.float64) for name in names}
    return ShardTable(np.array([key.encode("utf-8", "surrogateescape") for key in keys], dtype=bytes), fields, array, columns)


def index_name(shard: Path | str) -> str:
    """NAME-000000.tar -> NAME-000000.idx.json, next to it, for a path or URL."""
    return str(shard).removesuffix(".tar") + ".idx.json"


def read_table(shard: Path) -> ShardTable:
    """Read the `idx.json` of the shard. Raises DataError when it cannot be read or is not an index."""
    path = index_name(shard)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}). {_remedy(path)}") from error
    return parse_table(path, content)


def parse_table(path: str, content: bytes, sha256: str | None = None) -> ShardTable:
    """The table in the `content` of an index file; `sha256`, if given, is that of the manifest.

    Raises DataError when the content is not an index, or has another sha256.
    """
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path} is not the index that dataset.json describes (its sha256 differs). {_remedy(path)}")
    collecting = gc.isenabled()
    gc.disable()  # garbage collection would repeatedly traverse the many objects of a parsed index, and find no garbage
    try:
        index = json.loads(content)
        version = index["version"]
        samples = index["samples"]
        keys, spans = [s["key"] for s in samples], [s["fields"] for s in samples]
        table = build_table(keys, spans, [s.get("columns", {}) for s in samples])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a shard index ({type(error).__name__}: {error}). {_remedy(path)}") from error
    finally:
        if collecting:
            gc.enable()
    if version != INDEX_VERSION:
        raise DataError(f"{path} has version {version}; this program reads version {INDEX_VERSION}. {_remedy(path)}")
    return table


def check_length(shard: str, size: int, table: ShardTable) -> None:
    """Raises DataError when the shard of `size` bytes ends before the last field of its table."""
    if size < table.end():
        raise DataError(
            f"{shard} has {size:,} bytes but its index points to byte {table.end():,}: it was cut short. Copy or make it again."
        )


def _remedy(index: str) -> str:
    return f"Make the shard again, or delete {index.rpartition('/')[2]} and dataset.json to have the tar scanned instead."


def scan_table(shard: Path) -> ShardTable:
    """Build the table from the tar's headers. Raises DataError as `scan_tar` does."""
    samples = dict(scan_tar(shard))
    return build_table(list(samples), list(samples.values()))
