"""Writes a folder of WebDataset shards, one shard at a time, so that an interrupted run can continue.

Per shard, in this order: NAME-000000.tar.tmp -> (fsync, rename) NAME-000000.tar -> NAME-000000.idx.json ->
NAME-000000_stats.json. The last one is the done marker: a shard without it, or with another config hash, does not
count. When all shards are done, dataset.json lists them; until then unfinished.json says how to continue. The bytes
depend on the config alone, not on the number of workers or ranks nor on interruptions. A shard in which every sample
failed is an empty tar, so that numbers have no gap.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm
from webdataset import TarWriter

from megaunigame.data.shards.manifest import LARGEST_MANIFEST, MANIFEST, TOKEN_COUNTS
from megaunigame.data.shards.unfinished import COMMAND, FAILURES, WORKING
from megaunigame.errors import ConfigError, DataError
from megaunigame.storage.foreign_text import one_line, quoted
from megaunigame.storage.json_files import read_object
from megaunigame.storage.pending import sha256_of
from megaunigame.storage.untrusted_json import parse, read_within

from .notes import bounded, notes_of
from .shard_index import index_of
from .whole_files import unwritable, write_atomically
from .workers import in_processes

FORMAT_VERSION = 1
LONGEST_NAME_OF_SHARDS = 128
"""Bytes before the number of a shard: names of files that are being written also have a host and a process."""

ShardSample = dict[str, bytes | str]
"""`__key__` (str) and, for every field, its bytes under the field's extension."""


@dataclass
class Shard:
    """What a shard function yields: samples; failures as {"key", "reason"}; and how often anything was left out or changed."""

    samples: Iterable[ShardSample]
    failures: list[dict[str, str]] = field(default_factory=list)
    """May still grow while `samples` is consumed."""
    notes: Counter[str] = field(default_factory=Counter)
    """As `failures`: what was left out or changed, in words -> how often."""


@dataclass(frozen=True)
class Job:
    """A folder to write. `shard(k)` gives shard k's samples; it must be picklable and depend on `config` and k only."""

    folder: Path
    name: str
    config: dict[str, Any]
    shards: int
    shard: Callable[[int], Shard]
    command: str = COMMAND
    """What to type to continue."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a name that leaves no room for the endings of files."""
        if len(self.name.encode()) > LONGEST_NAME_OF_SHARDS:
            raise ConfigError(
                f"The shards would be called {quoted(self.name)}, which has {len(self.name.encode())} bytes; at most "
                f"{LONGEST_NAME_OF_SHARDS} leave room for the endings of their files. Type --name NAME."
            )

    @property
    def config_hash(self) -> str:
        return hash_of(self.config)

    def stem(self, number: int) -> str:
        return f"{self.name}-{number:06d}"


def hash_of(value: object) -> str:
    """Hex SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_dataset(
    job: Job, workers: int, overwrite: bool, part: tuple[int, int] = (0, 1), retry_failed: bool = False
) -> list[dict[str, Any]] | None:
    """Write what is missing of the shards r, r + w, ... of `job`, `part` being (rank r, world w), with a progress bar.

    `retry_failed` also writes those again in which something failed. Returns the statistics of all shards, for
    `finish_dataset`, or prints that shards of other ranks are missing and returns None: the last rank to end gets them.
    Raises DataError when the folder holds shards of another config (without `overwrite`), or cannot be written.
    """
    rank, world = part
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out {job.folder}: no such folder can be made ({error.strerror})") from error
    _make_room(job, overwrite, part)
    own = range(rank, job.shards, world)
    finished = {number: stats for number in own if (stats := _finished(job, number)) is not None}
    if retry_failed:
        finished = {number: stats for number, stats in finished.items() if not stats["failures"]}
    missing = [number for number in own if number not in finished]
    if finished:
        print(f"{job.folder}: {len(finished)} of {len(own)} shards are already there")
    if missing:
        (job.folder / MANIFEST).unlink(missing_ok=True)  # it means: complete
        note = {"command": job.command, "shards": job.shards}
        write_atomically(job.folder / WORKING, json.dumps(note).encode())
    failed = sum(stats["failed"] for stats in finished.values())
    label = job.name if world == 1 else f"{job.name} {rank}/{world}"
    with tqdm(total=len(own), initial=len(finished), unit="shard", desc=label) as bar:
        for stats in _written(job, missing, workers):
            failed += stats["failed"]
            bar.set_postfix(failed=failed, refresh=False)
            bar.update()
    statistics = [_finished(job, number) for number in range(job.shards)]
    absent = sum(stats is None for stats in statistics)
    if absent:
        print(f"{job.folder}: part {rank} of {world} is done; {absent} of {job.shards} shards are left to other ranks")
        return None
    return [stats for stats in statistics if stats is not None]


def finish_dataset(job: Job, statistics: list[dict[str, Any]], max_failed_fraction: float) -> Path:
    """Write failures.jsonl and, unless too many entries failed, the manifest. Raises DataError when too many did."""
    failures = [failure for stats in statistics for failure in stats["failures"]]
    entries = len(failures) + sum(stats["samples"] for stats in statistics)
    enforce_limit(job.folder, failures, entries, max_failed_fraction)
    write_failures(job.folder, failures)
    return write_manifest(job, statistics)


def enforce_limit(folder: Path, failures: list[dict[str, str]], entries: int, max_failed_fraction: float) -> None:
    """Raises DataError, with the failures in failures.jsonl, when more than this fraction of the entries failed."""
    if len(failures) <= max_failed_fraction * entries:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_failures(folder, failures)
    first = failures[0]["image"] if "image" in failures[0] else failures[0]["key"]
    why = f"{one_line(failures[0]['reason'])}: {one_line(first)}"
    raise DataError(
        f"{len(failures)} of {entries} entries failed ({why}, ...); --max-failed-fraction allows "
        f"{max_failed_fraction}. All are in {folder / FAILURES}. Fix them and type --retry-failed, or type "
        f"--max-failed-fraction {math.ceil(1e4 * len(failures) / entries) / 1e4:g} or more"
    )


def write_manifest(job: Job, statistics: list[dict[str, Any]]) -> Path:
    """Write dataset.json: the folder is complete."""
    shards: list[dict[str, Any]] = []
    fields: set[str] = set()
    for number, stats in enumerate(statistics):
        index = json.loads((job.folder / f"{job.stem(number)}.idx.json").read_text())
        fields.update(name for sample in index["samples"] for name in sample["fields"])
        counted = {name: stats[name] for name in ("samples", "bytes", "index_sha256")}
        tar = job.folder / f"{job.stem(number)}.tar"
        # Statistics of an earlier version have no hash of the tar.
        counted["sha256"] = stats["sha256"] if "sha256" in stats else sha256_of(tar)
        shards.append({"file": tar.name, **counted})
    manifest = {
        "version": FORMAT_VERSION,
        "name": job.name,
        "samples": sum(stats["samples"] for stats in statistics),
        "fields": sorted(fields),
        "notes": notes_of(statistics),
        "config": job.config,
        "config_hash": job.config_hash,
        "shards": shards,
    }
    manifest |= _kept_counts(job.folder / MANIFEST, shards)
    write_atomically(job.folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    (job.folder / WORKING).unlink(missing_ok=True)
    return job.folder / MANIFEST


def _kept_counts(path: Path, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest says that is there of the counts of tokens (`count_tokens`), if it is of the same shards."""
    if not path.is_file():
        return {}
    try:
        there = parse(read_within(path, LARGEST_MANIFEST), LARGEST_MANIFEST)
    except ValueError:  # it is written new
        return {}
    same = isinstance(there, dict) and TOKEN_COUNTS in there and there.get("shards") == shards
    return {TOKEN_COUNTS: there[TOKEN_COUNTS]} if same else {}


def write_failures(folder: Path, failures: list[dict[str, str]]) -> None:
    """Write failures.jsonl, one line per failed entry; no file when nothing failed."""
    if failures:
        write_atomically(folder / FAILURES, "".join(json.dumps(f) + "\n" for f in failures).encode())
    else:
        (folder / FAILURES).unlink(missing_ok=True)


def _make_room(job: Job, overwrite: bool, part: tuple[int, int]) -> None:
    """Clear what this rank left half-written; refuse (or, with overwrite, clear) its shards of another config."""
    rank, world = part
    # Other ranks work in the same folder: leave their temporary files and shards to them.
    patterns = (
        (f"{job.name}-*.tmp",)
        if world > 1
        else tuple(f"{name}*tmp" for name in (f"{job.name}-", f"{MANIFEST}.", f"{FAILURES}.", f"{WORKING}."))
    )
    for pattern in patterns:
        for leftover in job.folder.glob(pattern):
            if _number_in(leftover) % world == rank:
                leftover.unlink()
    if overwrite:
        # Done markers go first: at no moment does a deleted shard look done.
        for ending in ("_stats.json", ".idx.json", ".tar"):
            for path in job.folder.glob(f"*-{6 * '[0-9]'}{ending}"):
                if _number_in(path) % world == rank:
                    path.unlink()
        for name in (MANIFEST, FAILURES, WORKING):
            (job.folder / name).unlink(missing_ok=True)
        return
    for path in sorted(job.folder.glob("*_stats.json")):
        stats = _read_stats(path)
        if stats is not None and ("config_hash" not in stats or stats["config_hash"] != job.config_hash):
            raise DataError(
                f"{job.folder} holds shards written with other settings ({path.name}); "
                "type --overwrite to replace them, or choose another --out"
            )


def _number_in(path: Path) -> int:
    """The shard number in a file's name; 0 for the files that belong to no shard."""
    found = re.search(r"-(\d{6})[._]", path.name)
    return int(found[1]) if found else 0


def _read_stats(path: Path) -> dict[str, Any] | None:
    """None when there is no such file: another rank may be writing that shard again."""
    try:
        path.stat()
    except FileNotFoundError:
        return None
    return read_object(path, "the statistics of a shard", DataError, "Delete it, or type --overwrite.")


def _finished(job: Job, number: int) -> dict[str, Any] | None:
    """Statistics of a shard that is done, whole and of this config, else None."""
    stats = _read_stats(job.folder / f"{job.stem(number)}_stats.json")
    tar = job.folder / f"{job.stem(number)}.tar"
    index = job.folder / f"{job.stem(number)}.idx.json"
    if stats is None or stats.get("config_hash") != job.config_hash or not tar.exists() or not index.exists():
        return None
    whole = tar.stat().st_size == stats["bytes"] and hashlib.sha256(index.read_bytes()).hexdigest() == stats["index_sha256"]
    return stats if whole else None


def _written(job: Job, numbers: list[int], workers: int) -> Iterator[dict[str, Any]]:
    """Statistics of the shards, in the order in which they are done."""
    write = functools.partial(_write_shard, job)
    workers = min(workers, len(numbers))
    if workers <= 1:
        yield from map(write, numbers)
        return
    for _, stats in in_processes(write, numbers, workers, name=job.stem):
        yield stats


def _write_shard(job: Job, number: int) -> dict[str, Any]:
    """Write one shard and its companions; the statistics come last and mark it as done.

    Raises DataError when something cannot be written; what is half-written is removed.
    """
    done = job.folder / f"{job.stem(number)}_stats.json"
    tar = job.folder / f"{job.stem(number)}.tar"
    temporary = tar.with_name(tar.name + ".tmp")
    done.unlink(missing_ok=True)  # first: a new tar with old statistics could pass for the old one
    shard = job.shard(number)
    samples = 0
    try:
        with open(temporary, "wb") as stream:
            with TarWriter(stream, encoder=False, mtime=0, user="", group="") as writer:
                for sample in _read_from_source(job, number, shard.samples):
                    writer.write(sample)
                    samples += 1
            stream.flush()
            os.fsync(stream.fileno())
        sha256 = sha256_of(temporary)
        os.replace(temporary, tar)
    except OSError as error:
        raise unwritable(temporary, error) from error
    index = json.dumps(index_of(tar), separators=(",", ":")).encode()
    write_atomically(tar.with_suffix(".idx.json"), index)
    stats = {
        "samples": samples,
        "bytes": tar.stat().st_size,
        "failed": len(shard.failures),
        "failures": shard.failures,
        "notes": bounded(shard.notes),
        "config_hash": job.config_hash,
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "sha256": sha256,
    }
    write_atomically(done, json.dumps(stats).encode())
    return stats


def _read_from_source(job: Job, number: int, samples: Iterable[ShardSample]) -> Iterator[ShardSample]:
    """The samples; an OSError raised while making them comes from the source, not from the output disk."""
    try:
        yield from samples
    except OSError as error:
        raise DataError(f"{job.stem(number)}: its source cannot be read ({error}); fix that, then run again") from error
