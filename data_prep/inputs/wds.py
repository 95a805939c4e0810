"""`--format wds`: tars of pictures with txt and/or json (CC3M, BLIP3o-60k, img2dataset), shard for shard."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaunigame.data.decode import CODES_FIELD, further_fields
from megaunigame.data.edits import EDITS
from megaunigame.errors import DataError

from ..shard_writer import Shard, ShardSample
from .base import Failure, Input
from .conversation import checked_texts, counted_places, places_of_edits
from .files import files_identity, source_files
from .further_pictures import packed_all
from .sample import EntryFailure
from .tar_fields import HEAD, Roles, by_name, refuse_several, roles_of
from .tar_members import FIRST, Span, TarSample, tar_samples
from .texts import decoded_record, decoded_text, talk_of

COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
"""First bytes of a compressed file -> the program that unpacks it."""
EMPTY = "source tar without a sample"


@dataclass(frozen=True)
class Tars(Input):
    """Source tar k becomes shard k, keys stay as far as a shard can hold them.

    `txt` is the caption; json may hold `caption` and `conversations` too. Pictures are known by their content; fields that are
    nothing of this are left out and counted. Rows that img2dataset marks as failed are failures.
    """

    shard_name = "wds"
    needs = ("source",)
    takes = ("dots", "split")

    tars: tuple[Path, ...]
    dots: str | None
    """Where names are split; None: at the first dot, and fields that look like several samples are a failure."""

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Tars:
        tars = source_files(arguments.source, ".tar", arguments.out, arguments.split)
        for tar in tars:
            _require_end_mark(tar)
        return cls(tars, arguments.dots)

    @property
    def shards(self) -> int:
        return len(self.tars)

    def sources(self) -> tuple[Path, ...]:
        return self.tars

    def identity(self) -> dict[str, Any]:
        return {**files_identity(self.tars), "dots": self.dots}

    def shard(self, number: int) -> Shard:
        failures: list[Failure] = []
        notes: Counter[str] = Counter()
        return Shard(self._samples(self.tars[number], failures, notes), failures, notes)

    def _samples(self, tar: Path, failures: list[Failure], notes: Counter[str]) -> Iterator[ShardSample]:
        some = False
        with open(tar, "rb") as stream:
            for sample in tar_samples(tar, self.dots or FIRST, notes):
                some = True
                try:
                    yield self._sample(stream.fileno(), sample, notes)
                except EntryFailure as failure:
                    failures.append({"key": sample.key, "image": tar.name, "reason": str(failure)})
        notes[EMPTY] += not some

    def _sample(self, file: int, sample: TarSample, notes: Counter[str]) -> ShardSample:
        spans = sample.spans()

        def read(field: str, size: int | None = None) -> bytes:
            offset, whole = spans[field]
            return os.pread(file, whole if size is None else min(size, whole), offset)

        if self.dots is None:
            refuse_several(spans)
        roles, further = _pictures_of(spans, lambda field: read(field, HEAD))
        record = decoded_record(read(roles.json), notes) if roles.json is not None else {}
        if str(record.get("status")).startswith("failed"):
            raise EntryFailure(f"img2dataset says {record['status']}: {record.get('error_message')}")
        text = decoded_text(read(roles.text), notes) if roles.text is not None else None
        picture = read(roles.picture) if roles.picture is not None else None
        try:
            if roles.further and _places_in(record) == 1 + len(further) + len(roles.further):
                everything = sorted((*further, *roles.further), key=by_name)
                roles, further = dataclasses.replace(roles, further=()), everything
                if picture is not None and record.get(EDITS) is not None:
                    _note_order([str(roles.picture), *everything], notes)
            shown = 0 if picture is None else 1 + len(further)
            checked = checked_texts(record, shown, notes, text)
        except EntryFailure as failure:
            raise EntryFailure(f"{failure} (its fields: {_listed(spans)})") from failure
        pictures = [] if picture is None else [picture, *map(read, further)]
        made = packed_all(sample.key, checked, pictures, self.rules) | {field: read(field) for field in roles.targets}
        _note_unused(roles, notes)
        return made


def _pictures_of(names: Collection[str], head: Callable[[str], bytes]) -> tuple[Roles, list[str]]:
    """The roles of the fields, and the later pictures of a sample as our shards have it; none where it has no first one."""
    further = further_fields(names)
    roles = roles_of([name for name in names if name not in further], head)
    return (roles, further) if roles.picture is not None or not further else (roles_of(names, head), [])


def _places_in(record: dict[str, Any]) -> int:
    """Places of pictures in the edits or else in the conversation, if there is one."""
    if record.get(EDITS) is not None:
        return places_of_edits(record[EDITS])
    talk = talk_of(record)
    return 0 if talk is None else counted_places(talk)


def _note_order(names: list[str], notes: Counter[str]) -> None:
    """Say in which order pictures of edits were taken: after it, a source is a target. Names that only count need no note."""
    kinds = [re.sub(r"\d+", "#", name) for name in names]
    if len(set(kinds)) > 1:
        shown = ", ".join(kinds[:8]) + (", ..." if len(kinds) > 8 else "")
        notes[f"pictures of edits in the order of their names, {shown}: rename them where a source does not come first"] += 1


def _note_unused(roles: Roles, notes: Counter[str]) -> None:
    for field in (*roles.further, *roles.unused):
        if field == CODES_FIELD:  # of pictures that packing may change
            notes[f"field '{field}': not used; make it from the packed pictures: annotate --tasks codes"] += 1
            continue
        what = "further picture" if field in roles.further else "field"
        advice = "; if names of samples have dots, type --dots last" if "." in field else ""
        notes[f"{what} '{field}': not used{advice}"] += 1
    if roles.unused and roles.picture is None:
        notes["sample with other fields, but no picture: packed as text only"] += 1


def _listed(spans: dict[str, Span]) -> str:
    return ", ".join(sorted(spans)[:8]) + (", ..." if len(spans) > 8 else "")


def _require_end_mark(tar: Path) -> None:
    """Raises DataError for a truncated download, and for a compressed tar, before the first shard is written."""
    size = tar.stat().st_size
    with open(tar, "rb") as stream:
        head = stream.read(8)
        mark = os.pread(stream.fileno(), tarfile.BLOCKSIZE, max(0, size - tarfile.BLOCKSIZE))
    program = next((program for magic, program in COMPRESSED.items() if head.startswith(magic)), None)
    if program is not None:
        raise DataError(f"--source {tar}: is compressed; unpack it: {program} -c {tar} > OTHER.tar")
    if size % tarfile.BLOCKSIZE or mark != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"--source {tar}: has no end-of-archive mark, it was cut short; download it again or leave it out")
