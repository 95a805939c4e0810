"""Data sets written in one go, and what a folder of shards holds, read without the code under test that wrote it."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.shard_writer import Job, finish_dataset, write_dataset
from data_prep.statistics import read_manifest


def write_whole(job: Job, max_failed_fraction: float = 0.0) -> None:
    """All shards of a data set and its manifest."""
    statistics = write_dataset(job, workers=1, overwrite=False)
    assert statistics is not None
    finish_dataset(job, statistics, max_failed_fraction)


def content(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of every file."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def samples_of(folder: Path) -> dict[str, dict[str, bytes]]:
    """Key -> field -> bytes, over all shards of the manifest."""
    found: dict[str, dict[str, bytes]] = {}
    for shard in read_manifest(folder)["shards"]:
        with tarfile.open(folder / shard["file"]) as tar:
            for member in tar:
                key, _, field = member.name.partition(".")
                data = tar.extractfile(member)
                assert data is not None
                found.setdefault(key, {})[field] = data.read()
    return found


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(fields["json"]) for fields in samples_of(folder).values()]


def pixels(file: bytes, mode: str = "") -> np.ndarray:
    """Of an image file, in its own mode or in another."""
    with Image.open(io.BytesIO(file)) as picture:
        return np.array(picture.convert(mode) if mode else picture)


def failures_of(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]
