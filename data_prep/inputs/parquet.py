"""`--format parquet`: tables with the picture's bytes in a column, as Hugging Face data sets store them."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.inputs.base import Failure, Input
from data_prep.inputs.conversation import checked_texts
from data_prep.inputs.files import files_identity, source_files
from data_prep.inputs.sample import EntryFailure, numbered_key, packed
from data_prep.shard_writer import Shard, ShardSample
from megaunigame.errors import DataError

ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Parquet(Input):
    """Rows of all files, in order, cut into shards of `shard_size`. A row without picture bytes is text-only.

    The picture column holds bytes, or {bytes, path}; conversations may be a list or its JSON text. Other columns of
    single numbers, texts or booleans go into the json unchanged.
    """

    shard_name = "parquet"
    needs = ("source",)
    takes = ("image_column", "caption_column", "conversations_column", "shard_size")

    files: tuple[Path, ...]
    rows: tuple[int, ...]
    """Rows of each file."""
    image: str
    caption: str
    conversations: str
    shard_size: int

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Parquet:
        files = source_files(arguments.source, ".parquet", arguments.out)
        names: dict[str, Any] = {
            name: getattr(arguments, f"{name}_column") or name for name in ("image", "caption", "conversations")
        }
        rows = []
        for file in files:
            with _opened(file) as table:
                _require_columns(file, table.schema_arrow.names, names)
                rows.append(table.metadata.num_rows)
        if not sum(rows):
            raise DataError(f"--source {' '.join(arguments.source)}: the {len(files)} file(s) there have no rows")
        return cls(files, tuple(rows), **names, shard_size=arguments.shard_size)

    @property
    def shards(self) -> int:
        return -(-sum(self.rows) // self.shard_size)

    def identity(self) -> dict[str, Any]:
        columns = {"image": self.image, "caption": self.caption, "conversations": self.conversations}
        return {**files_identity(self.files), "columns": columns, "shard_size": self.shard_size}

    def shard(self, number: int) -> Shard:
        failures: list[Failure] = []
        return Shard(self._samples(number * self.shard_size, failures), failures)

    def _samples(self, first: int, failures: list[Failure]) -> Iterator[ShardSample]:
        rows = itertools.islice(self._rows_from(first), self.shard_size)
        for number, (file, row) in enumerate(rows, start=first):
            key = numbered_key(number, row["id"] if "id" in row else "")
            try:
                yield self._sample(key, row)
            except EntryFailure as failure:
                failures.append({"key": key, "image": file.name, "reason": str(failure)})

    def _rows_from(self, first: int) -> Iterator[tuple[Path, dict[str, Any]]]:
        """All rows from a global row number on, opening only the row groups that hold them."""
        for file, rows in zip(self.files, self.rows, strict=True):
            if first >= rows:
                first -= rows
                continue
            with _opened(file) as table:
                for group in range(table.metadata.num_row_groups):
                    held = table.metadata.row_group(group).num_rows
                    if first >= held:
                        first -= held
                        continue
                    for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=[group]):
                        for row in batch.slice(first).to_pylist() if first < len(batch) else ():
                            yield file, row
                        first = max(0, first - len(batch))

    def _sample(self, key: str, row: dict[str, Any]) -> ShardSample:
        picture = row[self.image] if self.image in row else None
        if isinstance(picture, dict):
            if "bytes" not in picture or (picture["bytes"] is None and picture.get("path")):
                raise EntryFailure("has a picture that is only a path; the bytes must be in the table")
            picture = picture["bytes"]
        if picture is not None and not isinstance(picture, bytes):
            raise EntryFailure(f"has a picture that is a {type(picture).__name__}, not bytes")
        record: dict[str, Any] = {name: value for name, value in row.items() if _is_plain(value)}
        for name, column in (("caption", self.caption), ("conversations", self.conversations)):
            record.pop(column, None)
            if column in row:
                record[name] = row[column]
        if self.conversations in row and isinstance(row[self.conversations], str):
            try:
                record["conversations"] = json.loads(row[self.conversations])
            except (ValueError, RecursionError) as error:
                raise EntryFailure(f"has conversations that are not JSON: {error}") from error
        return packed(key, checked_texts(record, has_image=picture is not None), picture, self.rules)


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)  # JSON has no NaN
    return isinstance(value, (str, int))


def _opened(file: Path) -> Any:
    """A pyarrow ParquetFile. Raises DataError without pyarrow, or when the file is not Parquet."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError("--format parquet needs pyarrow: pip install 'megaunigame[parquet]'") from error
    try:
        return parquet.ParquetFile(file)
    except (ValueError, OSError) as error:  # ArrowInvalid is a ValueError
        raise DataError(f"--source {file}: not a readable Parquet file ({error}); download it again or leave it out") from error


def _require_columns(file: Path, there: list[str], names: dict[str, str]) -> None:
    has_text = names["caption"] in there or names["conversations"] in there
    if names["image"] in there and has_text:
        return
    raise DataError(
        f"--source {file}: has the columns {', '.join(there)}; wanted {names['image']} (bytes) and {names['caption']} or "
        f"{names['conversations']}: type --image-column, --caption-column, --conversations-column to say which they are"
    )
