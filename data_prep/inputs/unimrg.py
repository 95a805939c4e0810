"""`--format unimrg`: the layout of the data that were released with arXiv 2601.21406, LLaVA-Instruct-150K-UniMRG.

    FOLDER/llava_v1_5_mix665k.json      the entries of `llava-json`
    FOLDER/tuning_data/                 their pictures: coco/, gqa/, ocr_vqa/, textvqa/, vg/
    FOLDER/tuning_data_depth/           a gray depth map for each, near = bright, under the same path as .png
    FOLDER/tuning_data_mask/            the contours of its segments, white on black, likewise

Maps are looked up as the released code does: under the name of the picture, or with another ending. There an entry without a
map is replaced by another one, unseen; here it is a failure with its reason.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from megaunigame.errors import DataError

from ..options import require_at_least
from ..shard_writer import ShardSample
from ..target_fields import is_same_shape, target_size
from .base import Entry
from .files import refuse_url
from .json_file import sha256_of
from .llava_json import LlavaJson
from .map_files import contours_field, depth_field, size_of
from .picture_names import find_file, missing
from .sample import EntryFailure

LIST = "llava_v1_5_mix665k.json"
PICTURES, DEPTH, CONTOURS = "tuning_data", "tuning_data_depth", "tuning_data_mask"
MAPS = {DEPTH: "depth map", CONTOURS: "contours"}
"""Folder -> what it has, for messages."""


@dataclass(frozen=True)
class UniMrg(LlavaJson):
    """Conversations, pictures, depth maps and contours. A text-only entry has no maps, one of several pictures those of its
    first."""

    shard_name = "unimrg"
    needs = ("source",)
    takes = ("json", "shard_size", "target_size")

    source: Path
    target_size: int
    """Shorter side of the stored depth maps, where the picture has more; 0: that of the picture."""

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> UniMrg:
        folder = _folder(arguments.source)
        if arguments.target_size is not None:
            require_at_least(arguments, target_size=0)
        listed = folder / LIST if arguments.json is None else arguments.json
        return cls(
            json=listed,
            json_sha256=sha256_of(listed, "--json"),
            image_root=folder / PICTURES,
            shard_size=arguments.shard_size,
            source=folder,
            target_size=arguments.target_size or 0,
        )

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "target_size": self.target_size}

    def _problem(self, entry: Entry) -> str:
        problem = super()._problem(entry)
        if problem or not entry.images:
            return problem
        return next((f"{what}: {lack}" for folder, what in MAPS.items() if (lack := self._lack(folder, entry.images[0]))), "")

    def _lack(self, folder: str, name: str) -> str:
        """Why there is no map in the folder; empty when there is one."""
        if find_file(self.source / folder, name) is not None:
            return ""
        bare = PurePosixPath(name.replace("\\", "/")).with_suffix(".png").name
        if (self.source / folder / bare).is_file():
            return (
                f"in {folder} itself, not in the folder of its picture ({bare}): there pictures of one name share a map. Write "
                "the maps into the same folders as the pictures"
            )
        return f"{missing(name)} in {folder}"

    def _sample(self, entry: Entry, notes: Counter[str]) -> ShardSample:
        try:
            sample = super()._sample(entry, notes)
            return self._with_maps(sample, entry.images[0], notes) if entry.images else sample
        except EntryFailure as failure:
            notes[f"left out: {str(failure).partition(' (')[0]}"] += 1
            raise

    def _with_maps(self, sample: ShardSample, name: str, notes: Counter[str]) -> ShardSample:
        record = json.loads(sample["json"])
        size = record["height"], record["width"]
        with _named(MAPS[DEPTH]):
            target = target_size(*size, self.target_size)
            fields, about = depth_field(self._map(DEPTH, name, size, notes), target, self.rules)
        with _named(MAPS[CONTOURS]):
            fields |= contours_field(self._map(CONTOURS, name, size, notes), self.rules)
        return {**sample, "json": json.dumps({**record, **about}, ensure_ascii=False).encode(), **fields}

    def _map(self, folder: str, name: str, size: tuple[int, int], notes: Counter[str]) -> bytes:
        """The file of a map. Raises EntryFailure unless it has the shape of its picture, whose (height, width) is `size`."""
        lack = self._lack(folder, name)
        if lack:
            raise EntryFailure(lack)
        content = self._read(self.source / folder, name)
        found = size_of(content, self.rules)
        if not is_same_shape(found, size):
            raise EntryFailure(f"another shape than its picture (height and width {found}, the picture {size})")
        if found != size:
            notes[f"{MAPS[folder]} of another size than its picture, in the same shape: kept"] += 1
        return content


@contextmanager
def _named(what: str) -> Iterator[None]:
    """A failure inside says that it is about `what`."""
    try:
        yield
    except EntryFailure as failure:
        raise EntryFailure(f"{what}: {failure}") from failure


def _folder(given: list[str]) -> Path:
    """The folder of --source. Raises DataError unless it is one with the folders of the layout."""
    if len(given) != 1:
        raise DataError(f"--source {' '.join(given)}: give one folder, which has {PICTURES}, {DEPTH} and {CONTOURS}")
    refuse_url(given[0], "--source")
    folder = Path(given[0])
    if not folder.is_dir():
        raise DataError(f"--source {folder}: no such folder; give the one with {PICTURES}, {DEPTH} and {CONTOURS}")
    absent = [name for name in (PICTURES, *MAPS) if not (folder / name).is_dir()]
    if absent:
        raise DataError(
            f"--source {folder}: has no folder {' and no '.join(absent)}; unpack what was downloaded there, or, without maps, "
            "type pack --format llava-json and then annotate"
        )
    return folder
