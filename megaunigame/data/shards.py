"""Random access to the samples of a folder of tar shards.

A folder with a `dataset.json` (written by `python -m data_prep`) opens without reading any per-sample index: the number
of samples per shard is in the manifest, and a shard's own `idx.json` is read when the shard is first touched. Any other
WebDataset tars work too; every shard's index is then read, or scanned, when the folder is opened.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import logging
import os
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megaunigame.data.shard_table import ShardTable, index_path, read_table, scan_table
from megaunigame.errors import DataError

MANIFEST = "dataset.json"
MANIFEST_VERSION = 1

log = logging.getLogger(__name__)


@dataclass
class _OpenShard:
    table: ShardTable
    file: io.FileIO | None = None


class ShardIndex:
    """The samples of a set of shards, addressed by (shard, index in the shard).

    Safe to use after a fork (reads are positional, nothing shares a file offset) and to send to another process.
    """

    def __init__(
        self,
        location: str,
        paths: list[Path],
        sizes: np.ndarray,
        digests: list[str],
        fields: tuple[str, ...],
        index_sha256: list[str] | None = None,
        scanned: dict[int, ShardTable] | None = None,
        open_shards: int = 32,
    ):
        self.location = location
        self.paths = paths
        self.sizes = sizes
        """(shards,) int64: samples per shard."""
        self.fields = fields
        self._digests = digests
        self._index_sha256 = index_sha256
        self._scanned = scanned or {}
        self._open_shards = open_shards
        self._opened: OrderedDict[int, _OpenShard] = OrderedDict()
        if self.samples == 0:
            raise DataError(f"{location}: {len(paths)} shard(s) but not one sample. Make the shards again.")

    @classmethod
    def open(cls, location: str | Path, open_shards: int = 32) -> ShardIndex:
        """Open a folder of shards, one tar, or a glob of tars.

        `open_shards` bounds the shards whose table and file stay open; more than two shuffle windows is enough.
        Raises DataError when nothing is there, or when a shard, an index or the manifest is missing, cut or wrong.
        """
        path = Path(location)
        if (path / MANIFEST).is_file():
            return cls._from_manifest(path, open_shards)
        if path.is_dir():
            paths = sorted(path.glob("*.tar"))
        else:
            paths = sorted(Path(p) for p in glob.glob(str(location)) if p.endswith(".tar"))
        if not paths:
            found = "an empty folder" if path.is_dir() else "nothing"
            if path.is_dir() and any(path.iterdir()):
                found = "a folder without a .tar file"
            raise DataError(
                f"No shards: {location} is {found}. Give a folder of .tar shards, one .tar, or a quoted glob; "
                "`python -m data_prep --help` shows how to make shards."
            )
        return cls._from_tars(str(location), paths, open_shards)

    @classmethod
    def _from_manifest(cls, folder: Path, open_shards: int) -> ShardIndex:
        manifest = _read_manifest(folder / MANIFEST)
        shards = manifest["shards"]
        paths = [folder / s["file"] for s in shards]
        for path, shard in zip(paths, shards, strict=True):
            again = "Run the same `python -m data_prep` command again (it makes what is missing), or copy the folder anew."
            if not path.is_file():
                raise DataError(f"{path} is listed in {MANIFEST} but missing. {again}")
            size = path.stat().st_size
            if size != shard["bytes"]:
                raise DataError(f"{path} has {size:,} bytes, {MANIFEST} says {shard['bytes']:,}. Delete it. {again}")
            if not index_path(path).is_file():
                raise DataError(f"{index_path(path)} is missing: {MANIFEST} wants an index beside every shard. {again}")
        digests = [s["index_sha256"] for s in shards]
        return cls(
            str(folder),
            paths,
            np.array([s["samples"] for s in shards], dtype=np.int64),
            digests,
            tuple(sorted(manifest["fields"])),
            index_sha256=digests,
            open_shards=open_shards,
        )

    @classmethod
    def _from_tars(cls, location: str, paths: list[Path], open_shards: int) -> ShardIndex:
        sizes, digests = [], []
        fields: set[str] = set()
        scanned: dict[int, ShardTable] = {}
        for shard, path in enumerate(paths):
            if index_path(path).is_file():
                table = read_table(path)
            else:
                table = scanned[shard] = scan_table(path)
            sizes.append(len(table))
            digests.append(table.digest())
            fields.update(table.fields)
        log.info("%s has no %s: found %d shard(s), %d of them scanned.", location, MANIFEST, len(paths), len(scanned))
        order = tuple(sorted(fields))
        return cls(location, paths, np.array(sizes, dtype=np.int64), digests, order, scanned=scanned, open_shards=open_shards)

    @cached_property
    def samples(self) -> int:
        return int(self.sizes.sum())

    @cached_property
    def hash(self) -> str:
        """sha256 over file names, sizes and per-shard contents; independent of the folder the shards lie in."""
        rows = [[p.name, int(n), d] for p, n, d in zip(self.paths, self.sizes, self._digests, strict=True)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def table(self, shard: int) -> ShardTable:
        """Raises DataError when the shard's index does not fit the manifest or the tar."""
        return self._open(shard).table

    def key(self, shard: int, i: int) -> str:
        return self.table(shard).key(i)

    def read(self, shard: int, i: int) -> tuple[str, dict[str, bytes]]:
        """Key and raw fields of a sample, in one read. Raises DataError (the file ends too early) or OSError."""
        opened = self._open(shard)
        file = opened.file  # held here: another thread that opens the same shard must not close it under our read
        if file is None:
            file = opened.file = io.FileIO(self.paths[shard], "r")
        key, spans = opened.table.key(i), opened.table.spans_of(i)
        start = min((offset for offset, _ in spans.values()), default=0)
        length = max((offset + size for offset, size in spans.values()), default=0) - start
        data = os.pread(file.fileno(), length, start)
        if len(data) != length:
            raise DataError(
                f"{self.paths[shard]} ends inside sample {key!r} ({len(data):,} of {length:,} bytes are there). "
                "Copy or make the shard again."
            )
        return key, {field: data[offset - start : offset - start + size] for field, (offset, size) in spans.items()}

    def _open(self, shard: int) -> _OpenShard:
        if shard in self._opened:
            self._opened.move_to_end(shard)
            return self._opened[shard]
        if len(self._opened) >= self._open_shards:
            _, oldest = self._opened.popitem(last=False)
            if oldest.file is not None:
                oldest.file.close()
        self._opened[shard] = _OpenShard(self._load(shard))
        return self._opened[shard]

    def _load(self, shard: int) -> ShardTable:
        if shard in self._scanned:
            return self._scanned[shard]
        table = read_table(self.paths[shard], self._index_sha256[shard] if self._index_sha256 else None)
        if len(table) != self.sizes[shard]:
            raise DataError(
                f"{index_path(self.paths[shard])} lists {len(table)} samples, {int(self.sizes[shard])} were expected. "
                "Make the shard again."
            )
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}  # files stay behind; the other process opens its own


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, with every key this file reads checked. Raises DataError."""
    remedy = "Run the same `python -m data_prep` command again, or delete the file to use every .tar in the folder."
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["version"]
        whole_shards = [s for s in manifest["shards"] if int(s["samples"]) >= 0 and s["bytes"] and s["index_sha256"]]
        names = {str(s["file"]) for s in whole_shards}
        whole = len(names) == len(manifest["shards"]) and isinstance(manifest["fields"], list)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a manifest ({type(error).__name__}: {error}). {remedy}") from error
    if version != MANIFEST_VERSION:
        raise DataError(f"{path} has version {version}; this program reads version {MANIFEST_VERSION}. {remedy}")
    if not whole:
        raise DataError(f"{path} lists a shard twice, or one without size, samples or index hash. {remedy}")
    return manifest
