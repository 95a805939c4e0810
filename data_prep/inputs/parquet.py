"""`--format parquet`: tables with the picture's bytes in a column, as the Hugging Face hub stores them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaunigame.errors import DataError
from megaunigame.storage.foreign_text import one_line

from .table import Table

ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Parquet(Table):
    shard_name = "parquet"
    ending = ".parquet"

    @classmethod
    def shape_of(cls, file: Path) -> tuple[int, list[str]]:
        with _opened(file) as table:
            return table.metadata.num_rows, table.schema_arrow.names

    def rows_of(self, file: Path, first: int) -> Iterator[dict[str, Any]]:
        """Opens only the row groups that hold the rows."""
        with _opened(file) as table:
            for group in range(table.metadata.num_row_groups):
                held = table.metadata.row_group(group).num_rows
                if first >= held:
                    first -= held
                    continue
                for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=[group]):
                    if first < len(batch):
                        yield from batch.slice(first).to_pylist()
                    first = max(0, first - len(batch))


def _opened(file: Path) -> Any:
    """A pyarrow ParquetFile. Raises DataError without pyarrow, or when the file is not Parquet."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError("--format parquet needs pyarrow: pip install 'megaunigame[parquet]'") from error
    try:
        return parquet.ParquetFile(file)
    except (ValueError, OSError) as error:  # ArrowInvalid is a ValueError
        raise DataError(
            f"--source {file}: not a readable Parquet file ({one_line(error)}); download it again or leave it out"
        ) from error
