"""`--format arrow`: Arrow files of the `datasets` library, from `save_to_disk` or its cache."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaunigame.errors import DataError
from megaunigame.storage.foreign_text import one_line

from .table import Table

ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Arrow(Table):
    shard_name = "arrow"
    ending = ".arrow"

    @classmethod
    def shape_of(cls, file: Path) -> tuple[int, list[str]]:
        with _batches(file) as (columns, batches):
            return sum(len(batch) for batch in batches), columns

    def rows_of(self, file: Path, first: int) -> Iterator[dict[str, Any]]:
        """The file is mapped: batches before `first` cost nothing."""
        with _batches(file) as (_, batches):
            for batch in batches:
                for start in range(first, len(batch), ROWS_AT_ONCE):
                    yield from batch.slice(start, ROWS_AT_ONCE).to_pylist()
                first = max(0, first - len(batch))


@contextmanager
def _batches(file: Path) -> Iterator[tuple[list[str], Iterator[Any]]]:
    """Names of the columns, and the record batches of a file in Arrow's stream or file format.

    Raises DataError without pyarrow, when the file is neither, and when it is cut short.
    """
    try:
        arrow = importlib.import_module("pyarrow")
        ipc = importlib.import_module("pyarrow.ipc")
    except ImportError as error:
        raise DataError("--format arrow needs pyarrow: pip install 'megaunigame[parquet]'") from error
    try:
        with arrow.memory_map(str(file)) as source:
            if source.read(6) == b"ARROW1":
                table = ipc.open_file(source)
                yield table.schema.names, (table.get_batch(number) for number in range(table.num_record_batches))
            else:
                source.seek(0)
                stream = ipc.open_stream(source)
                yield stream.schema.names, stream
    except (arrow.ArrowInvalid, OSError) as error:
        raise DataError(
            f"--source {file}: not a readable Arrow file ({one_line(error)}); copy it again or leave it out"
        ) from error
