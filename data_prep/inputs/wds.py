"""`--format wds`: tars of pictures with txt and/or json (CC3M, BLIP3o-60k, img2dataset), shard for shard."""

from __future__ import annotations

import argparse
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.inputs.base import Failure, Input
from data_prep.inputs.conversation import checked_texts
from data_prep.inputs.files import files_identity, source_files
from data_prep.inputs.sample import EntryFailure, packed, short_key
from data_prep.shard_index import index_of, read_samples
from data_prep.shard_writer import Shard, ShardSample
from megaunigame.data.pictures.rules import PictureRules
from megaunigame.errors import DataError

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
TARGETS = ("depth.png", "seg.png")


@dataclass(frozen=True)
class Tars(Input):
    """Source tar k becomes shard k, keys stay. `txt` is the caption; json may hold `caption` and `conversations` too.

    Fields other than the picture, txt, json, depth.png and seg.png are dropped. Rows that img2dataset marks with a
    `status` other than success are failures.
    """

    shard_name = "wds"
    needs = ("source",)

    tars: tuple[Path, ...]

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Tars:
        tars = source_files(arguments.source, ".tar", arguments.out)
        for tar in tars:
            _require_end_mark(tar)
        return cls(tars)

    @property
    def shards(self) -> int:
        return len(self.tars)

    def identity(self) -> dict[str, Any]:
        return files_identity(self.tars)

    def shard(self, number: int) -> Shard:
        failures: list[Failure] = []
        return Shard(_samples(self.tars[number], self.rules, failures), failures)


def _samples(tar: Path, rules: PictureRules, failures: list[Failure]) -> Iterator[ShardSample]:
    for key, fields in read_samples(tar, index_of(tar), only=(*PICTURES, *TARGETS, "txt", "json")):
        try:
            yield _sample(key, fields, rules)
        except EntryFailure as failure:
            failures.append({"key": key, "image": tar.name, "reason": str(failure)})


def _sample(key: str, fields: Mapping[str, bytes], rules: PictureRules) -> ShardSample:
    record = _record(fields)
    picture = next((fields[name] for name in PICTURES if name in fields), None)
    sample = packed(short_key(key), checked_texts(record, has_image=picture is not None), picture, rules)
    return sample | {name: fields[name] for name in TARGETS if name in fields}


def _record(fields: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        record = json.loads(fields["json"]) if "json" in fields else {}
        caption = fields["txt"].decode("utf-8-sig") if "txt" in fields else None  # with or without a byte order mark
    except (ValueError, RecursionError) as error:
        raise EntryFailure(f"has a json or txt that cannot be read: {error}") from error
    if not isinstance(record, dict):
        raise EntryFailure(f"has a json that is not an object but a {type(record).__name__}")
    if "status" in record and record["status"] != "success":
        raise EntryFailure(f"img2dataset says {record['status']}: {record.get('error_message')}")
    has_texts = record.get("caption") is not None or record.get("conversations") is not None
    if caption is None or (has_texts and not caption.strip()):  # an empty txt next to a json that has texts
        return record
    return record | {"caption": caption}


def _require_end_mark(tar: Path) -> None:
    """Raises DataError for a truncated download, before the first shard is written."""
    size = tar.stat().st_size
    with open(tar, "rb") as stream:
        mark = os.pread(stream.fileno(), tarfile.BLOCKSIZE, max(0, size - tarfile.BLOCKSIZE))
    if size % tarfile.BLOCKSIZE or mark != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"--source {tar}: has no end-of-archive mark, it was cut short; download it again or leave it out")
