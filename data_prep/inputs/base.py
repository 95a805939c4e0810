"""The interface of an input format, and the common part of formats that list picture files."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from megaunigame.pictures.rules import DEFAULT_RULES, PictureRules

from ..shard_writer import Shard, ShardSample
from .further_pictures import packed_all
from .picture_names import find_file, missing
from .sample import EntryFailure

Failure = dict[str, str]
"""A line of failures.jsonl: "key", "reason" and, where a file is to blame, "image"."""


@dataclass(frozen=True, kw_only=True)
class Input(ABC):
    """A source of samples, cut into shards. Small enough to be sent to every worker; large files are read there.

    A sample has `json` with a `caption`, `conversations` or (test sets) `questions`; usually a picture, and then `width`
    and `height` in pixels; and `depth.png`, `seg.png` and `contours.png` if the source has them.
    """

    shard_name: ClassVar[str]
    """Name of the shards without --name."""
    needs: ClassVar[tuple[str, ...]]
    """Required options of the command line."""
    takes: ClassVar[tuple[str, ...]] = ()
    """Optional ones."""

    rules: PictureRules = DEFAULT_RULES
    """How its pictures are read; the command line decides, for every format alike."""

    @classmethod
    @abstractmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Input:
        """Open the source that the command line describes. Raises DataError when it cannot be read."""

    @property
    @abstractmethod
    def shards(self) -> int:
        """Number of shards."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the bytes of the shards depend on: goes into the config hash and the manifest."""

    @abstractmethod
    def shard(self, number: int) -> Shard:
        """Shard `number`. Raises DataError for a damaged source; single bad samples are failures of the shard."""

    def sources(self) -> tuple[Path, ...]:
        """Files that `identity` knows by name and size only."""
        return ()

    def absent(self) -> tuple[list[Failure], int]:
        """Failures known without opening a picture, and the number of entries."""
        return [], 0


@dataclass(frozen=True)
class Entry:
    """A sample whose pictures are separate files."""

    key: str
    record: dict[str, Any]
    images: tuple[str, ...] = ()
    """Paths below the image root; none for a text-only sample."""
    problem: str = ""
    """Why the entry cannot be packed, where that is known without its pictures."""
    notes: tuple[str, ...] = ()
    """What the reading of the entry left out, one note each."""


class ListedPictures(Input):
    """An input that is a list of entries and a folder of pictures."""

    image_root: Path
    shard_size: int

    @abstractmethod
    def entries(self) -> list[Entry]:
        """All entries, checked. Called often, so results are cached."""

    @property
    def shards(self) -> int:
        return -(-len(self.entries()) // self.shard_size)

    def shard(self, number: int) -> Shard:
        failures: list[Failure] = []
        notes: Counter[str] = Counter()
        return Shard(self._samples(number, failures, notes), failures, notes)

    def absent(self) -> tuple[list[Failure], int]:
        entries = self.entries()
        looked_at = tqdm(entries, desc="looking for pictures", unit="entry", delay=2, leave=False)
        return [_failure(e, problem) for e in looked_at if (problem := self._problem(e))], len(entries)

    def _samples(self, number: int, failures: list[Failure], notes: Counter[str]) -> Iterator[ShardSample]:
        for entry in self.entries()[number * self.shard_size : (number + 1) * self.shard_size]:
            try:
                yield self._sample(entry, notes)
                notes.update(entry.notes)
            except EntryFailure as failure:
                failures.append(_failure(entry, str(failure)))

    def _sample(self, entry: Entry, notes: Counter[str]) -> ShardSample:
        """One sample; `notes` counts what was changed. Raises EntryFailure for an entry that cannot be packed."""
        return packed_all(entry.key, entry.record, self._pictures(entry), self.rules)

    def _pictures(self, entry: Entry) -> list[bytes]:
        if entry.problem:
            raise EntryFailure(entry.problem)
        return [self._read(self.image_root, name) for name in entry.images]

    @staticmethod
    def _read(root: Path, name: str) -> bytes:
        path = find_file(root, name)
        if path is None:
            raise EntryFailure(missing(name))
        try:
            return path.read_bytes()
        except OSError as error:
            raise EntryFailure(f"file cannot be read: {error.strerror}") from error

    def _problem(self, entry: Entry) -> str:
        """The reason why an entry cannot be packed, as far as is known without opening a picture; else ""."""
        if entry.problem:
            return entry.problem
        return next((missing(name) for name in entry.images if find_file(self.image_root, name) is None), "")


def _failure(entry: Entry, reason: str) -> Failure:
    return {"key": entry.key, "image": ", ".join(entry.images), "reason": reason}
