"""Byte ranges of the samples in the tar of a shard: read from `idx.json`, or found by one scan of the headers.

Both may come from anybody: names, numbers and the memory of the arrays are bounded.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megaunigame.data.shards.foreign import pack_command
from megaunigame.data.shards.manifest import MOST_BYTES, MOST_FIELDS, is_field
from megaunigame.data.shards.tar_scan import Spans, scan_tar
from megaunigame.errors import DataError
from megaunigame.storage.foreign_text import one_line, quoted
from megaunigame.storage.plain_names import readable
from megaunigame.storage.untrusted_json import parse, read_within

INDEX_VERSION = 1
ABSENT = -1
LARGEST_INDEX = 512 * 1024**2
"""Bytes of an idx.json: about two million samples."""
LONGEST_KEY = 1024
"""Bytes; data_prep writes 80 at most."""
LARGEST_ARRAY = 512 * 1024**2
"""Bytes of the keys of a shard (each takes the room of the longest), of its byte ranges, and of its columns."""
LARGEST_SAMPLE = 1024**3
"""Bytes from the first field of a sample to the end of its last one: they are read at once."""


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
        """As text that can be shown anywhere: what is not UTF-8, or controls a terminal, is U+FFFD."""
        return readable(self.keys[i].decode("utf-8", "replace"))

    def spans_of(self, i: int) -> Spans:
        """Raises DataError for a sample that is too large to be read at once."""
        rows = zip(self.fields, self.spans[i].tolist(), strict=True)
        spans = {field: (offset, size) for field, (offset, size) in rows if offset != ABSENT}
        length = max((o + n for o, n in spans.values()), default=0) - min((o for o, _ in spans.values()), default=0)
        if length > LARGEST_SAMPLE:
            raise DataError(
                f"Sample {self.key(i)!r} takes {length:,} bytes of its shard, more than the {LARGEST_SAMPLE:,} that are read. "
                "Divide it, or leave it out."
            )
        return spans

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
    """The table of samples, from their keys, field -> (offset, size), and columns, if any.

    Raises ValueError, TypeError, AttributeError or OverflowError for what no table holds.
    """
    names = np.array(_within([key.encode("utf-8", "surrogateescape") for key in keys]), dtype=bytes)
    fields = _names("fields", spans, 16)
    array = np.zeros((len(keys), len(fields), 2), dtype=np.int64)
    for c, field in enumerate(fields):
        column = np.array([of_sample.get(field, (ABSENT, 0)) for of_sample in spans], dtype=np.int64)
        if column.shape != (len(keys), 2):  # else one number would stand for two, or for all samples
            raise ValueError(f"the field {quoted(field)} has something else than [offset, size]")
        array[:, c] = column
    offsets, sizes = array[..., 0], array[..., 1]
    if array.size and (offsets.min() < ABSENT or sizes.min() < 0 or max(offsets.max(), sizes.max()) > MOST_BYTES):
        raise ValueError(f"an offset or a size is not within 0 and {MOST_BYTES}")
    columns = {
        name: np.array([row.get(name, np.nan) for row in numbers], dtype=np.float64) for name in _names("columns", numbers, 8)
    }
    return ShardTable(names, fields, array, columns)


def _within(keys: list[bytes]) -> list[bytes]:
    longest = max(map(len, keys), default=0)
    if longest > LONGEST_KEY:
        raise ValueError(f"a key of {longest:,} bytes, more than {LONGEST_KEY:,}")
    _check_array("keys", len(keys) * longest)
    return keys


def _names(what: str, samples: Sequence[Mapping[str, object]], cell: int) -> tuple[str, ...]:
    """The sorted names of all samples; `cell`: bytes that each takes for one sample."""
    names = tuple(sorted({name for of_sample in samples for name in of_sample}))
    if len(names) > MOST_FIELDS:
        raise ValueError(f"{len(names):,} different {what}, more than {MOST_FIELDS:,}")
    _check_array(what, len(names) * len(samples) * cell)
    if what == "fields" and not all(map(is_field, names)):
        raise ValueError(f"the field {quoted(next(name for name in names if not is_field(name)))} is not a part of a file name")
    return names


def _check_array(what: str, size: int) -> None:
    if size > LARGEST_ARRAY:
        raise ValueError(f"{what} that take {size:,} bytes, more than {LARGEST_ARRAY:,}: make smaller shards")


def index_name(shard: Path | str) -> str:
    """NAME-000000.tar -> NAME-000000.idx.json, next to it, for a path or URL."""
    return str(shard).removesuffix(".tar") + ".idx.json"


def read_table(shard: Path) -> ShardTable:
    """Read the `idx.json` of the shard. Raises DataError when it cannot be read or is not an index."""
    path = index_name(shard)
    try:
        content = read_within(Path(path), LARGEST_INDEX)
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
        index = parse(content, LARGEST_INDEX)
        version = index["version"]
        samples = index["samples"]
        keys, spans = [s["key"] for s in samples], [s["fields"] for s in samples]
        table = build_table(keys, spans, [s.get("columns", {}) for s in samples])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is not a shard index ({type(error).__name__}: {one_line(error)}). {_remedy(path)}") from error
    finally:
        if collecting:
            gc.enable()
    if version != INDEX_VERSION:
        raise DataError(f"{path} has version {quoted(version)}; this program reads version {INDEX_VERSION}. {_remedy(path)}")
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
    try:
        return build_table(list(samples), list(samples.values()))
    except ValueError as error:
        raise DataError(f"{shard} cannot be read as a shard ({one_line(error)}). Pack it: {pack_command(shard)}") from error
