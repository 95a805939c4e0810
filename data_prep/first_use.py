"""`data.NAME.source`: a data set that is not a folder of shards, packed when a run first uses it.

The first process of every node tries to pack, in a separate process: where the nodes share the cache one of them does,
else each packs a copy. All others wait for the manifest. This happens before the process group begins, so nothing waits in a
collective, and a pack may take hours. The folder's name has a hash of the source (names, sizes and times of its files, or the
hash of a JSON file) and of the settings of pack; a pack that was interrupted continues.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from megaunigame.config import StreamConfig
from megaunigame.data.shards.manifest import MANIFEST
from megaunigame.errors import ConfigError, DataError, UserError
from megaunigame.storage.foreign_text import one_line

from . import pack
from .command_line import PROGRAM, parsed
from .inputs.table_files import SAVED, SAVED_SPLITS, files_of_folder
from .shard_writer import Job, hash_of
from .shared_lock import SharedLock

POLL = 0.5
TELL_EVERY = 30.0
PATIENCE = 120.0
"""Seconds that a process waits while nobody packs."""
MOST_WORKERS = 16
JSON_ENDINGS = (".json", ".jsonl")
COMPRESSED = {".gz": "gunzip -k", ".bz2": "bunzip2 -k", ".xz": "unxz -k", ".zst": "unzstd"}
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "config.json", "croissant.json"}
"""JSON files of Hugging Face folders; img2dataset writes NUMBER_stats.json."""
FORMATS = {".tar": "wds", ".parquet": "parquet", ".arrow": "arrow"}
LEGAL = "a JSON or JSONL file in the LLaVA form, or files or a folder of .tar, .parquet or .arrow"


class _Sourced(Protocol):
    """Both a stream and a data set of a mix."""

    shards: str
    source: str
    image_root: str
    split: str


def pack_sources(streams: Mapping[str, StreamConfig]) -> dict[str, str]:
    """Pack what has a `source`, and put the folder of its shards in the place of it; returns folder -> source, for the record.

    Raises ConfigError for a source of no known form, DataError when it cannot be packed.
    """
    sources: dict[str, str] = {}
    for name, stream in streams.items():
        for key, part in _parts(f"data.{name}", stream):
            if part.source:
                part.shards = str(_packed(key, part, stream))
                sources[part.shards] = f"{part.source}, split {part.split}" if part.split else part.source
                part.source = part.image_root = part.split = ""
    return sources


def _parts(key: str, stream: StreamConfig) -> Iterator[tuple[str, _Sourced]]:
    yield key, stream
    for name, part in stream.mix.items():
        yield f"{key}.mix.{name}", part


def _packed(key: str, part: _Sourced, stream: StreamConfig) -> Path:
    """The folder of the shards, made by this process, by another one, or by an earlier run."""
    cache = Path(stream.cache.folder).absolute()
    workers = max(1, min(MOST_WORKERS, (os.cpu_count() or 2) // 2))
    pictures = ["--ground", stream.ground, "--max-pixels", str(stream.max_pixels)]
    command = ["pack", *_source_options(key, part), *pictures, "--workers", str(workers)]
    try:
        source, job = pack.job_of(parsed([*command, "--out", str(cache)]))
    except UserError as error:
        raise type(error)(f"{key}: {_in_recipe_words(str(error), key)}") from error
    times = [[str(file), file.stat().st_mtime_ns] for file in source.sources()]
    folder = cache / f"{job.name}-{hash_of([job.config, times])[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    lock = SharedLock(cache / f"{folder.name}.lock")
    command += ["--out", str(folder)]
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _pack_or_wait(key, part.source, job, folder, lock, command)
    else:
        _wait(key, folder, lock)
    if os.environ.get("RANK", "0") == "0":
        print(f"{key}: the shards of {part.source} are in {folder}", flush=True)
    return folder


def _pack_or_wait(key: str, source: str, job: Job, folder: Path, lock: SharedLock, command: list[str]) -> None:
    told = 0.0
    while not _is_done(folder):
        if lock.take():
            try:
                if not _is_done(folder):
                    _pack(key, source, job, folder, lock, command)
            finally:
                lock.release()
        elif time.monotonic() - told > TELL_EVERY:
            told = time.monotonic()
            print(f"{key}: waiting for {lock.holder()}, which packs {source}: {_progress(job, folder)}", flush=True)
        time.sleep(POLL)


def _wait(key: str, folder: Path, lock: SharedLock) -> None:
    seen = time.monotonic()
    while not _is_done(folder):
        if lock.path.exists():
            seen = time.monotonic()
        elif time.monotonic() - seen > PATIENCE:
            raise DataError(f"{key}: nobody packs {folder} anymore; the message of the first process of this node says why.")
        time.sleep(POLL)


def _pack(key: str, source: str, job: Job, folder: Path, lock: SharedLock, command: list[str]) -> None:
    """Raises DataError, with the command to type, when it fails."""
    log = folder.with_name(f"{folder.name}.log")
    typed = shlex.join([*PROGRAM.split(), *command])
    print(f"{key}: packing {source}, once, into {folder} (log: {log}): {typed}", flush=True)
    root = str(Path(__file__).resolve().parents[__package__.count(".") + 1])  # where our top-level package lies
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with open(log, "wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", __package__, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": paths},
            pass_fds=[lock.file],  # it keeps the lock if this process is killed
        )
    told = time.monotonic()
    while child.poll() is None:
        if time.monotonic() - told > TELL_EVERY:
            told = time.monotonic()
            print(f"{key}: packing {source}: {_progress(job, folder)}", flush=True)
        time.sleep(POLL)
    lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    summary = next((number for number, line in enumerate(lines) if " entries packed, " in line), len(lines))
    for line in lines[summary:]:
        print(f"{key}: {line.strip()}", flush=True)
    if child.returncode:
        said = lines[-1].rpartition("\r")[2].removeprefix(f"{PROGRAM}: ")
        raise DataError(
            f"{key}.source={source} could not be packed (exit code {child.returncode}, log: {log}): {said}. To go on with an "
            f"option of pack, type: {typed} OPTION; then start the run again."
        )


def _is_done(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _progress(job: Job, folder: Path) -> str:
    return f"{sum(1 for _ in folder.glob('*_stats.json'))} of {job.shards} shards"


def _source_options(key: str, part: _Sourced) -> list[str]:
    """Raises ConfigError for a source of no known form."""
    if "://" in part.source:
        raise ConfigError(
            f"{key}.source={part.source} is a URL, and only local files are packed. Download it first and give the folder; if "
            f"it is a folder of shards of data_prep, type {key}.shards={part.source}."
        )
    form, path = _form(key, Path(part.source))
    options = ["--format", form, "--json" if form == "llava-json" else "--source", str(path.absolute())]
    root = part.image_root or (str(path.parent) if form == "llava-json" else "")
    if root:
        options += ["--image-root", str(Path(root).absolute())]
    return options + (["--split", part.split] if part.split else [])


def _form(key: str, source: Path) -> tuple[str, Path]:
    """The format of pack, and the file or folder to give it."""
    if source.suffix in FORMATS:
        return FORMATS[source.suffix], source
    if source.suffix.lower() in JSON_ENDINGS:
        return "llava-json", source
    if source.suffix.lower() in COMPRESSED and source.is_file():
        unpacked = source.with_suffix("")
        raise ConfigError(
            f"{key}.source={source} is compressed. Unpack it ({COMPRESSED[source.suffix.lower()]} {source}), then type "
            f"{key}.source={unpacked}."
        )
    if not source.is_dir():
        raise ConfigError(f"{key}.source={source} is {'no known form' if source.exists() else 'not there'}. Give {LEGAL}.")
    if (source / MANIFEST).is_file():
        raise ConfigError(f"{key}.source={source} is a folder of shards already. Type {key}.shards={source}.")
    if (source / SAVED).is_file() or (source / SAVED_SPLITS).is_file():
        return "arrow", source
    listed = sorted(file for file in source.iterdir() if file.suffix.lower() in JSON_ENDINGS and not _describes(file.name))
    for ending, form in FORMATS.items():
        if found := files_of_folder(source, ending, None, any_split=True):
            if listed:
                raise ConfigError(
                    f"{key}.source={source} has {one_line(listed[0].name)} and "
                    f"{one_line(str(found[0].relative_to(source)))}: which is meant? Type "
                    f"{key}.source={shlex.quote(str(listed[0]))} for the JSON file, "
                    f"{key}.source='{_glob_of(found[0], source)}' for the others."
                )
            return form, source
    if len(listed) == 1:
        return "llava-json", listed[0]
    raise ConfigError(f"{key}.source={source} has {len(listed)} JSON files and none of {', '.join(FORMATS)}. Give {LEGAL}.")


def _describes(name: str) -> bool:
    """Whether a JSON file of this name says something about the files next to it, and lists no entries."""
    return name in DESCRIPTIONS or name.endswith(("_stats.json", ".idx.json"))


def _glob_of(file: Path, source: Path) -> Path:
    """What names the file and those of its ending in folders as deep."""
    return source.joinpath(*("*" for _ in file.relative_to(source).parts[:-1]), f"*{file.suffix}")


def _in_recipe_words(message: str, key: str) -> str:
    """A message of `pack` with the keys of the recipe in place of the options."""
    message = re.sub(r"--split ([\w.-]*\w)", rf"{key}.split=\1", message)
    for option, setting in (("--source ", "source="), ("--json ", "source="), ("--image-root ", "image_root=")):
        message = message.replace(option, f"{key}.{setting}")
    return message.replace("--split", f"{key}.split").replace("--image-root", f"{key}.image_root")
