"""Tables with a row per sample: what their columns become, whatever file holds them."""

from __future__ import annotations

import argparse
import itertools
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Self

from megaunigame.data.conversation import TALK_KEYS
from megaunigame.data.edits import EDITS
from megaunigame.errors import DataError, UserError
from megaunigame.storage.foreign_text import one_line

from ..shard_writer import Shard, ShardSample
from .base import Failure, Input
from .conversation import checked_texts
from .files import files_identity, source_files
from .further_pictures import packed_all
from .json_file import require_folder
from .messages import turns_of
from .sample import EntryFailure, find_picture, numbered_key

COLUMNS = {
    "image": ("image", "images", "image_list"),
    "caption": ("caption", "text"),
    "conversations": TALK_KEYS,
    "edits": (EDITS, "instruction_list"),
}
"""What a column is used for -> its name without an option: the first that the table has."""


@dataclass(frozen=True)
class Table(Input):
    """Rows of all files, in order, cut into shards of `shard_size`. A row without a picture is text-only.

    The picture column holds bytes, {bytes, path}, a path below the image root, or a list of these. Conversations are what
    `megaunigame.data.conversation` reads, or its JSON text, edits what `megaunigame.data.edits` reads. Other columns of single
    numbers, texts or booleans go into the json unchanged.
    """

    needs = ("source",)
    takes = ("image_column", "caption_column", "conversations_column", "edits_column", "shard_size", "split", "image_root")
    ending: ClassVar[str]
    """Of its files."""

    files: tuple[Path, ...]
    rows: tuple[int, ...]
    """Rows of each file."""
    image: str
    caption: str
    conversations: str
    edits: str
    shard_size: int
    image_root: Path | None

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        if arguments.image_root is not None:
            require_folder(arguments.image_root, "--image-root")
        files = source_files(arguments.source, cls.ending, arguments.out, arguments.split)
        shapes = [cls.shape_of(file) for file in files]
        names: dict[str, Any] = {
            use: getattr(arguments, f"{use}_column") or next((name for name in known if name in shapes[0][1]), known[0])
            for use, known in COLUMNS.items()
        }
        for file, (_, columns) in zip(files, shapes, strict=True):
            _require_columns(file, columns, names)
        rows = tuple(count for count, _ in shapes)
        if not sum(rows):
            raise DataError(f"--source {' '.join(arguments.source)}: the {len(files)} file(s) there have no rows")
        return cls(files, rows, **names, shard_size=arguments.shard_size, image_root=arguments.image_root)

    @classmethod
    @abstractmethod
    def shape_of(cls, file: Path) -> tuple[int, list[str]]:
        """Number of rows, and names of the columns. Raises DataError when the file cannot be read."""

    @abstractmethod
    def rows_of(self, file: Path, first: int) -> Iterator[dict[str, Any]]:
        """The rows of a file from number `first` on; what comes before is not decoded."""

    @property
    def shards(self) -> int:
        return -(-sum(self.rows) // self.shard_size)

    def sources(self) -> tuple[Path, ...]:
        return self.files

    def identity(self) -> dict[str, Any]:
        columns = {"image": self.image, "caption": self.caption, "conversations": self.conversations}
        if self.edits != EDITS:
            columns["edits"] = self.edits
        root = {} if self.image_root is None else {"image_root": str(self.image_root)}
        return {**files_identity(self.files), "columns": columns, "shard_size": self.shard_size, **root}

    def shard(self, number: int) -> Shard:
        failures: list[Failure] = []
        notes: Counter[str] = Counter()
        return Shard(self._samples(number * self.shard_size, failures, notes), failures, notes)

    def _samples(self, first: int, failures: list[Failure], notes: Counter[str]) -> Iterator[ShardSample]:
        rows = itertools.islice(self._rows_from(first), self.shard_size)
        for number, (file, row) in enumerate(rows, start=first):
            key = numbered_key(number, row["id"] if "id" in row else "")
            try:
                yield self._sample(key, row, notes)
            except EntryFailure as failure:
                failures.append({"key": key, "image": file.name, "reason": str(failure)})

    def _rows_from(self, first: int) -> Iterator[tuple[Path, dict[str, Any]]]:
        """All rows from a global row number on."""
        for file, rows in zip(self.files, self.rows, strict=True):
            if first < rows:
                try:
                    for row in self.rows_of(file, first):
                        yield file, row
                except UserError:
                    raise
                except Exception as error:  # pyarrow: of damaged pages, numbers of another kind, texts that are not UTF-8
                    raise DataError(
                        f"--source {file}: cannot be read to its end ({type(error).__name__}: {one_line(error)}); copy it "
                        "again or leave it out"
                    ) from error
            first = max(0, first - rows)

    def _sample(self, key: str, row: dict[str, Any], notes: Counter[str]) -> ShardSample:
        given = row[self.image] if self.image in row else None
        pictures = [item for item in (given if isinstance(given, list) else [given]) if item is not None]
        contents = [data for item in pictures if (data := self._bytes_of(item)) is not None]
        record: dict[str, Any] = {name: value for name, value in row.items() if _is_plain(value)}
        for name, column in (("caption", self.caption), ("conversations", self.conversations), (EDITS, self.edits)):
            record.pop(column, None)
            if column in row:
                record[name] = row[column]
        if record.get("conversations") is not None:
            record["conversations"] = turns_of(record["conversations"])
        checked = checked_texts(record, len(contents), notes)
        return packed_all(key, checked, contents, self.rules)

    def _bytes_of(self, picture: Any) -> bytes | None:
        """The file in a cell, or the one it names."""
        if isinstance(picture, dict):
            if picture.get("bytes") is None:
                return None if not picture.get("path") else self._file(picture["path"])
            picture = picture["bytes"]
        if isinstance(picture, str) and picture:
            return self._file(picture)
        if not isinstance(picture, bytes):
            raise EntryFailure(f"has a picture that is a {type(picture).__name__}, not bytes")
        return picture

    def _file(self, path: Any) -> bytes:
        if self.image_root is None:
            raise EntryFailure("has a picture that is only a path; the bytes must be in the table, or type --image-root")
        below = PurePosixPath(str(path))
        if below.is_absolute() and below.is_relative_to(self.image_root.absolute()):
            below = below.relative_to(self.image_root.absolute())
        if below.is_absolute() or ".." in below.parts:
            raise EntryFailure(f"has a picture {path!r}, which leads out of the image root")
        file = find_picture(self.image_root, str(below))
        if file is None:
            raise EntryFailure(f"missing file {path}")
        try:
            return file.read_bytes()
        except OSError as error:
            raise EntryFailure(f"file {path} cannot be read: {error.strerror}") from error


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)  # JSON has no NaN
    return isinstance(value, (str, int))


def _require_columns(file: Path, there: list[str], names: dict[str, str]) -> None:
    has_text = any(names[use] in there for use in ("caption", "conversations", "edits"))
    if names["image"] in there and has_text:
        return
    columns = one_line(", ".join(there))
    raise DataError(
        f"--source {file}: has the columns {columns}; wanted {names['image']} (bytes) and {names['caption']}, "
        f"{names['conversations']} or {names['edits']}: type --image-column, --caption-column, --conversations-column, "
        "--edits-column to say which they are"
    )
