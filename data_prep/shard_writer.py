"""Writes a folder of WebDataset shards, one shard at a time, so that an interrupted run can continue.

Per shard, in this order: NAME-000000.tar.tmp -> (fsync, rename) NAME-000000.tar -> NAME-000000.idx.json ->
NAME-000000_stats.json. The last one is the done marker: a shard without it, or with another config hash, does not
count. When all shards are done, dataset.json lists them. The bytes depend on the config alone, not on the number of
workers nor on interruptions.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm
from webdataset import TarWriter

from megaunigame.errors import DataError

MANIFEST = "dataset.json"
FAILURES = "failures.jsonl"
FORMAT_VERSION = 1

ShardSample = dict[str, bytes | str]
"""`__key__` (str) and, for every field, its bytes under the field's extension."""


@dataclass
class Shard:
    """What a shard function yields: samples, and failures as {"key", "reason"}."""

    samples: Iterable[ShardSample]
    failures: list[dict[str, str]] = field(default_factory=list)
    """May still grow while `samples` is consumed."""


@dataclass(frozen=True)
class Job:
    """A folder to write. `shard(k)` gives shard k's samples; it must be picklable and depend on `config` and k only."""

    folder: Path
    name: str
    config: dict[str, Any]
    shards: int
    shard: Callable[[int], Shard]

    @property
    def config_hash(self) -> str:
        return hash_of(self.config)

    def stem(self, number: int) -> str:
        return f"{self.name}-{number:06d}"


def hash_of(value: object) -> str:
    """Hex SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_dataset(job: Job, workers: int, overwrite: bool) -> list[dict[str, Any]]:
    """Write what is missing of `job`, with a progress bar over its shards, then the manifest.

    Returns the statistics of all shards. Raises DataError when the folder holds shards of another config.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    _make_room(job, overwrite)
    finished = {number: stats for number in range(job.shards) if (stats := _finished(job, number)) is not None}
    missing = [number for number in range(job.shards) if number not in finished]
    if finished:
        print(f"{job.folder}: {len(finished)} of {job.shards} shards are already there")
    with tqdm(total=job.shards, initial=len(finished), unit="shard", desc=job.name) as bar:
        for number, stats in _written(job, missing, workers):
            finished[number] = stats
            bar.update()
    return [finished[number] for number in range(job.shards)]


def write_manifest(job: Job, statistics: list[dict[str, Any]]) -> Path:
    """Write dataset.json (and failures.jsonl if anything failed): the folder is complete."""
    shards: list[dict[str, Any]] = []
    fields: set[str] = set()
    for number, stats in enumerate(statistics):
        if stats["samples"] == 0:
            continue
        index = json.loads((job.folder / f"{job.stem(number)}.idx.json").read_text())
        fields.update(name for sample in index["samples"] for name in sample["fields"])
        counted = {name: stats[name] for name in ("samples", "bytes", "index_sha256")}
        shards.append({"file": f"{job.stem(number)}.tar", **counted})
    manifest = {
        "version": FORMAT_VERSION,
        "name": job.name,
        "samples": sum(stats["samples"] for stats in statistics),
        "fields": sorted(fields),
        "config": job.config,
        "config_hash": job.config_hash,
        "shards": shards,
    }
    write_atomically(job.folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return job.folder / MANIFEST


def write_failures(folder: Path, failures: list[dict[str, str]]) -> None:
    """Write failures.jsonl, one line per failed entry; no file when nothing failed."""
    if failures:
        write_atomically(folder / FAILURES, "".join(json.dumps(f) + "\n" for f in failures).encode())
    else:
        (folder / FAILURES).unlink(missing_ok=True)


def index_of(tar: Path) -> dict[str, Any]:
    """The index of a tar from one scan of its headers: for every key, offset and size of each field's data.

    Raises DataError when the tar cannot be read or the fields of a key are not adjacent.
    """
    samples: list[dict[str, Any]] = []
    seen: set[str] = set()
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                key, _, extension = member.name.partition(".")
                if not samples or samples[-1]["key"] != key:
                    if key in seen:
                        raise DataError(f"{tar}: the fields of {key!r} are not adjacent; write the shard again")
                    seen.add(key)
                    samples.append({"key": key, "fields": {}})
                samples[-1]["fields"][extension] = [member.offset_data, member.size]
    except tarfile.TarError as error:
        raise DataError(f"{tar}: not a readable tar ({error}); delete its _stats.json and run the command again") from error
    return {"version": FORMAT_VERSION, "samples": samples}


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either absent, old, or complete."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def _make_room(job: Job, overwrite: bool) -> None:
    """Clear half-written files; refuse (or, with overwrite, clear) shards of another config."""
    for pattern in (f"{job.name}-*.tmp", f"{MANIFEST}.tmp", f"{FAILURES}.tmp"):
        for leftover in job.folder.glob(pattern):
            leftover.unlink()
    foreign = [path for path in job.folder.glob("*_stats.json") if _config_hash_in(path) != job.config_hash]
    if foreign and not overwrite:
        raise DataError(
            f"{job.folder} holds shards written with other settings ({foreign[0].name}); "
            "type --overwrite to replace them, or choose another --out"
        )
    if overwrite:
        ours = ("*_stats.json", "*.idx.json", "*-[0-9][0-9][0-9][0-9][0-9][0-9].tar", MANIFEST, FAILURES)
        # Done markers go first: at no moment does a deleted shard look done.
        for pattern in ours:
            for path in job.folder.glob(pattern):
                path.unlink()


def _config_hash_in(stats: Path) -> str | None:
    """None for statistics that another tool wrote."""
    hash_in_file: str | None = json.loads(stats.read_text()).get("config_hash")
    return hash_in_file


def _finished(job: Job, number: int) -> dict[str, Any] | None:
    """Statistics of a shard that is done and whole, else None."""
    stats_path = job.folder / f"{job.stem(number)}_stats.json"
    if not stats_path.exists():
        return None
    stats = json.loads(stats_path.read_text())
    tar = job.folder / f"{job.stem(number)}.tar"
    index = job.folder / f"{job.stem(number)}.idx.json"
    if stats["samples"] == 0:
        return stats
    whole = tar.exists() and tar.stat().st_size == stats["bytes"] and index.exists()
    return stats if whole and hashlib.sha256(index.read_bytes()).hexdigest() == stats["index_sha256"] else None


def _written(job: Job, numbers: list[int], workers: int) -> Iterator[tuple[int, dict[str, Any]]]:
    if workers == 1:
        for number in numbers:
            yield number, _write_shard(job, number)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(_write_numbered, [(job, number) for number in numbers])


def _write_numbered(job_and_number: tuple[Job, int]) -> tuple[int, dict[str, Any]]:
    job, number = job_and_number
    return number, _write_shard(job, number)


def _write_shard(job: Job, number: int) -> dict[str, Any]:
    """Write one shard and its companions; the statistics come last and mark it as done."""
    tar = job.folder / f"{job.stem(number)}.tar"
    temporary = tar.with_name(tar.name + ".tmp")
    shard = job.shard(number)
    samples = 0
    with open(temporary, "wb") as stream:
        with TarWriter(stream, encoder=False, mtime=0, user="", group="") as writer:
            for sample in shard.samples:
                writer.write(sample)
                samples += 1
        stream.flush()
        os.fsync(stream.fileno())
    if samples:
        os.replace(temporary, tar)
        index = json.dumps(index_of(tar), separators=(",", ":")).encode()
        write_atomically(tar.with_suffix(".idx.json"), index)
    else:
        temporary.unlink()
        index = b""
    stats = {
        "samples": samples,
        "bytes": tar.stat().st_size if samples else 0,
        "failed": len(shard.failures),
        "failures": shard.failures,
        "config_hash": job.config_hash,
        "index_sha256": hashlib.sha256(index).hexdigest(),
    }
    write_atomically(job.folder / f"{job.stem(number)}_stats.json", json.dumps(stats).encode())
    return stats
