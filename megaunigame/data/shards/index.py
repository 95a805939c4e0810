"""Random access to the samples of a folder of tar shards.

A folder with a `dataset.json` (written by `megaunigame prepare`) opens without reading any per-sample index: the number
of samples per shard is in the manifest, and a shard's own `idx.json` is read when the shard is first touched. Any other
WebDataset tars work too; every shard's index is then read, or scanned, when the folder is opened. A folder at a URL
must have a manifest; its shards are read through a cache on the node (`cache`).
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import json
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megaunigame.data.shards.amounts import amounts_of
from megaunigame.data.shards.cache import ShardCache
from megaunigame.data.shards.foreign import check_foreign
from megaunigame.data.shards.local import LocalFiles
from megaunigame.data.shards.manifest import LARGEST_MANIFEST, LONGEST_LOCAL_FILE, MANIFEST, Manifest, parse_manifest
from megaunigame.data.shards.remote import CachedFiles, is_url
from megaunigame.data.shards.table import ShardTable, check_length, index_name, parse_table, read_table, scan_table
from megaunigame.data.shards.token_counts import TokenCounts, counts_name, with_counts
from megaunigame.data.shards.unfinished import check_finished
from megaunigame.data.shards.urls import shown
from megaunigame.errors import DataError, LostShard
from megaunigame.step.amounts import Amounts
from megaunigame.storage.foreign_text import quoted
from megaunigame.storage.plain_names import LONGEST_NAME, readable
from megaunigame.storage.untrusted_json import read_within

log = logging.getLogger(__name__)


def _begins(file: io.FileIO) -> bool:
    """Whether the first block of a file can be read."""
    try:
        return bool(os.pread(file.fileno(), 512, 0))
    except OSError:
        return False


@dataclass
class _OpenShard:
    table: ShardTable
    file: io.FileIO

    def __del__(self) -> None:
        self.file.close()  # here, when no thread reads from it anymore


class ShardIndex:
    """The samples of a set of shards, addressed by (shard, index in the shard).

    Safe to use after a fork (reads are positional, nothing shares a file offset) and to send to another process.
    """

    def __init__(
        self,
        location: str,
        places: list[str],
        files: LocalFiles | CachedFiles,
        sizes: Sequence[int],
        digests: list[str],
        fields: tuple[str, ...],
        open_shards: int,
        scanned: dict[int, ShardTable] | None = None,
        token_counts: Mapping[str, str] | None = None,
    ):
        """`digests`: of the index files, as the manifest lists them; with `scanned`, of the tables. `token_counts`: those of
        the manifest."""
        self.location = location
        self.places = places
        """Path or URL of every shard."""
        self.files = files
        self.sizes = np.array(sizes, dtype=np.int64)
        """(shards,) int64: samples per shard."""
        self.fields = fields
        self._digests = digests
        self._scanned = scanned
        self._open_shards = open_shards
        self._opened: OrderedDict[int, _OpenShard] = OrderedDict()
        self._amounts: OrderedDict[tuple[int, str], Amounts] = OrderedDict()
        """By shard and tokenizer; as many as shards may be open."""
        self._token_counts = token_counts or {}
        self._counts: dict[str, TokenCounts] = {}
        if self.samples == 0:
            raise DataError(f"{location}: {len(places)} shard(s) but not one sample. Make the shards again.")

    @classmethod
    def open(cls, location: str | Path, open_shards: int = 32, cache: ShardCache | None = None) -> ShardIndex:
        """Open a folder of shards, one tar, a glob of tars, or the URL of a folder, which needs a `cache`.

        `open_shards` bounds the shards whose table and file stay open; more than two shuffle windows is enough.
        Raises DataError when nothing is there, when data_prep has not finished the folder, or when a shard, an index or the
        manifest is missing, cut or wrong.
        """
        if is_url(str(location)):
            url = str(location).rstrip("/")
            if cache is None:
                raise DataError(f"{shown(url)} needs a cache on the node to keep its shards in. Name a folder on a local disk.")
            manifest = parse_manifest(shown(f"{url}/{MANIFEST}"), cache.read(f"{url}/{MANIFEST}"))
            return cls._listed(shown(url), CachedFiles(url, manifest.shards, cache), manifest, open_shards)
        path = Path(location)
        if (path / MANIFEST).is_file():
            return cls._from_manifest(path, open_shards)
        if path.is_dir():
            paths = sorted(path.glob("*.tar"))
        else:
            paths = sorted(Path(p) for p in glob.glob(str(location)) if p.endswith(".tar"))
        if not path.is_file():  # a folder or a glob; one tar by its name is meant as it is
            for folder in sorted({path, *(tar.parent for tar in paths)}):
                check_finished(folder)
        if not paths:
            found = "is an empty folder" if path.is_dir() else "does not exist"
            if path.is_dir() and any(path.iterdir()):
                found = "is a folder without a .tar file"
            if path.is_file():
                found = "is a file of another kind"
            raise DataError(
                f"No shards: {location} {found}. Give a folder of .tar shards, one .tar, or a quoted glob. Data of another "
                "form (JSON, parquet, arrow): data.NAME={source: PATH, cache: {folder: FOLDER}} packs it on first use, "
                "`megaunigame prepare pack --help` shows how to make shards. For the tiny recipes: megaunigame prepare scenes "
                f"--out {location} --count 1000 --split train (or val)."
            )
        return cls._from_tars(str(location), paths, open_shards)

    @classmethod
    def _from_manifest(cls, folder: Path, open_shards: int) -> ShardIndex:
        manifest = parse_manifest(str(folder / MANIFEST), read_within(folder / MANIFEST, LARGEST_MANIFEST), LONGEST_LOCAL_FILE)
        paths = [folder / s.file for s in manifest.shards]
        again = "Run the same `megaunigame prepare` command again (it makes what is missing), or copy the folder again."
        for path in paths:
            if not path.is_file():
                raise DataError(f"{path} is listed in {MANIFEST} but missing. {again}")
            if not Path(index_name(path)).is_file():
                raise DataError(f"{index_name(path)} is missing: {MANIFEST} requires an index next to every shard. {again}")
        files = LocalFiles(paths)
        for number, shard in enumerate(manifest.shards):
            size = files.size(number)
            if size != shard.bytes:
                raise DataError(f"{paths[number]} has {size:,} bytes, {MANIFEST} says {shard.bytes:,}. Delete it. {again}")
        return cls._listed(str(folder), files, manifest, open_shards)

    @classmethod
    def _listed(cls, location: str, files: LocalFiles | CachedFiles, manifest: Manifest, open_shards: int) -> ShardIndex:
        shards = manifest.shards
        places, sizes = [f"{location}/{s.file}" for s in shards], [s.samples for s in shards]
        digests, counts = [s.index_sha256 for s in shards], manifest.token_counts
        return cls(location, places, files, sizes, digests, manifest.fields, open_shards, token_counts=counts)

    @classmethod
    def _from_tars(cls, location: str, paths: list[Path], open_shards: int) -> ShardIndex:
        sizes, digests = [], []
        fields: Counter[str] = Counter()
        scanned: dict[int, ShardTable] = {}
        odd = next((path for path in paths if readable(path.name) != path.name), None)
        if odd is not None:
            raise DataError(f"{location} has a tar with the name {quoted(odd.name, 200)}, which cannot be shown. Rename it.")
        long = next((path for path in paths if len(os.fsencode(Path(index_name(path)).name)) > LONGEST_NAME), None)
        if long is not None:
            raise DataError(f"The name of {long} is too long: there is no room for the ending of its index. Rename it.")
        files = LocalFiles(paths)
        for shard, path in enumerate(paths):
            if Path(index_name(path)).is_file():
                table = read_table(path)
                check_length(str(path), files.size(shard), table)
            else:
                table = scanned[shard] = scan_table(path)
            sizes.append(len(table))
            digests.append(table.digest())
            fields.update({name: int(table.has(name).sum()) for name in table.fields})
        log.info("%s has no %s: found %d shard(s), %d of them scanned.", location, MANIFEST, len(paths), len(scanned))
        check_foreign(location, sum(sizes), fields)
        return cls(location, list(map(str, paths)), files, sizes, digests, tuple(sorted(fields)), open_shards, scanned)

    @cached_property
    def samples(self) -> int:
        return int(self.sizes.sum())

    @cached_property
    def hash(self) -> str:
        """sha256 over file names, sizes and per-shard contents; independent of the folder of the shards."""
        names = [self.name(shard) for shard in range(len(self.places))]
        rows = [[name, int(n), d] for name, n, d in zip(names, self.sizes, self._digests, strict=True)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def name(self, shard: int) -> str:
        """File name of the shard."""
        return self.places[shard].rpartition("/")[2]

    def table(self, shard: int) -> ShardTable:
        """Raises DataError when the shard's index does not fit the manifest or the tar."""
        return self._open(shard).table

    def tables(self) -> Iterator[ShardTable]:
        """The table of every shard, one at a time; no tar is opened. Raises DataError as `table` does."""
        return (self._load(shard) for shard in range(len(self.places)))

    def has_counts(self, tokenizer: str) -> bool:
        """Whether the folder has counts of the tokens of this tokenizer. Raises DataError for damaged ones."""
        if tokenizer not in self._token_counts:
            return False
        if tokenizer not in self._counts:
            file = self.files.open_counts(tokenizer, self._token_counts[tokenizer], self.samples)
            self._counts[tokenizer] = TokenCounts(f"{self.location}/{counts_name(tokenizer)}", file, self.sizes)
        return True

    def amounts(self, shard: int, tokenizer: str) -> Amounts:
        """Of all samples of the shard, with the counts of `tokenizer` if there are any. Reads its index, if that was not read
        lately, and no tar. Raises as `table` does."""
        wanted = shard, tokenizer
        if wanted in self._amounts:
            self._amounts.move_to_end(wanted)
            return self._amounts[wanted]
        if len(self._amounts) >= self._open_shards:
            self._amounts.popitem(last=False)
        try:
            table = self._opened[shard].table if shard in self._opened else self._load(shard)
        except LostShard as error:  # a download knows its URL only
            raise LostShard(str(error), self.name(shard)) from error
        found = amounts_of(table)
        if self.has_counts(tokenizer):
            try:
                found = with_counts(found, self._counts[tokenizer].of(shard))
            except LostShard:
                del self._counts[tokenizer]  # the next try opens the file again
                raise
        self._amounts[wanted] = found
        return self._amounts[wanted]

    def key(self, shard: int, i: int) -> str:
        return self.table(shard).key(i)

    def read(self, shard: int, i: int) -> tuple[str, dict[str, bytes]]:
        """Key and raw fields of a sample, in one read.

        Raises DataError (the file ends too early) or OSError (its place on the disk cannot be read): the sample is bad.
        Raises LostShard when nothing of the shard can be read.
        """
        table = self.table(shard)
        key, spans = table.key(i), table.spans_of(i)
        start = min((offset for offset, _ in spans.values()), default=0)
        length = max((offset + size for offset, size in spans.values()), default=0) - start
        data = self._bytes(shard, start, length)
        if len(data) != length:
            raise DataError(
                f"{self.places[shard]} ends inside sample {key!r} ({len(data):,} of {length:,} bytes are "
                "there). Copy or make the shard again."
            )
        return key, {field: data[offset - start : offset - start + size] for field, (offset, size) in spans.items()}

    def _bytes(self, shard: int, start: int, length: int) -> bytes:
        """Up to `length` bytes of the tar. Raises OSError for a bad place in a good file, else LostShard."""
        try:
            return os.pread(self._open(shard).file.fileno(), length, start)
        except OSError:  # an open file of a network file system that was away stays broken
            self._opened.pop(shard, None)
        file = self._open(shard).file
        try:
            return os.pread(file.fileno(), length, start)
        except OSError as error:
            one_place = error.errno == errno.EIO and _begins(file)
            self._opened.pop(shard, None)
            if one_place:
                raise
            raise LostShard(f"{self.places[shard]} can no longer be read ({error}).", self.name(shard)) from error

    def _open(self, shard: int) -> _OpenShard:
        if shard in self._opened:
            self._opened.move_to_end(shard)
            return self._opened[shard]
        if len(self._opened) >= self._open_shards:
            self._opened.popitem(last=False)
        try:
            table, file = self._load(shard), self.files.open_tar(shard)
        except LostShard as error:  # a download knows its URL only
            raise LostShard(str(error), self.name(shard)) from error
        check_length(self.places[shard], os.fstat(file.fileno()).st_size, table)
        self._opened[shard] = _OpenShard(table, file)
        return self._opened[shard]

    def _load(self, shard: int) -> ShardTable:
        if self._scanned is not None and shard in self._scanned:
            return self._scanned[shard]
        path = index_name(self.places[shard])
        table = parse_table(path, self.files.read_index(shard), self._digests[shard] if self._scanned is None else None)
        if len(table) != self.sizes[shard]:
            raise DataError(f"{path} lists {len(table)} samples, {int(self.sizes[shard])} were expected. Make the shard again.")
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict(), "_counts": {}}  # files are not sent; the other process opens its own
