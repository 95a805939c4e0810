"""What all benchmarks share: tables of results, their Markdown, and the file of a measurement.

A benchmark is a program that hands its options and `measure(options)` to `run`. It measures tables. A cell is a text, a number,
None (empty), the `spread` of a number over rounds, or an aim (`at_most`, `at_least`) for another column of the same row.
Whether an aim is reached is computed from that column wherever the table is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "docs" / "measurements"
"""One file for each measurement of `listed.RUNS`."""
VERSIONS = ("torch", "deepspeed", "transformers")
Cell = str | int | float | dict[str, Any] | None


@dataclass(frozen=True)
class Table:
    """Columns and rows of a result."""

    columns: list[str]
    rows: list[list[Cell]]
    title: str = ""
    """A line above it."""

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *map(self._texts, self.rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{self.title}\n\n{table}" if self.title else table

    def _texts(self, row: list[Cell]) -> list[str]:
        cells = dict(zip(self.columns, row, strict=True))
        return [_text(cell, cells) for cell in row]


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and largest of the rounds of a run."""
    known = list(values)
    return {"median": statistics.median(known), "least": min(known), "most": max(known)}


def at_most(limit: float, column: str) -> dict[str, Any]:
    """The aim that `column` (its median) is `limit` or less."""
    return {"at most": limit, "of": column}


def at_least(limit: float, column: str) -> dict[str, Any]:
    """The aim that `column` (its median) is `limit` or more."""
    return {"at least": limit, "of": column}


def _text(cell: Cell, cells: dict[str, Cell]) -> str:
    if isinstance(cell, dict) and "of" in cell:
        return _aim(cell, cells[cell["of"]])
    if isinstance(cell, dict):
        median, least, most = (number(cell[key]) for key in ("median", "least", "most"))
        return f"{median} ({least} to {most})"
    return "" if cell is None else cell if isinstance(cell, str) else number(cell)


def _aim(aim: dict[str, Any], reached: Cell) -> str:
    if reached is None:
        return ""
    value = reached["median"] if isinstance(reached, dict) else reached
    [(words, limit)] = [(words, limit) for words, limit in aim.items() if words != "of"]
    is_met = value <= limit if words == "at most" else value >= limit
    return f"{words} {limit:g}: {'reached' if is_met else 'missed'}"


def number(value: float) -> str:
    """Whole numbers whole, others to about three digits."""
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.2g}"


def run(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], Sequence[Table]]) -> None:
    """The main function of a benchmark: measure, print the tables, and write them to `--write FILE`."""
    parser.add_argument("--write", type=Path, help="file for the tables, as JSON")
    options = parser.parse_args()
    tables = measure(options)
    print("\n\n".join(table.markdown() for table in tables), flush=True)
    if options.write:
        options.write.write_text(json.dumps([_rounded(asdict(table)) for table in tables]))


def _rounded(value: Any) -> Any:
    """Four digits of every number with a fraction."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def machine() -> dict[str, Any]:
    """Of the computer: name of the processor and number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {"processor": next(named, "") or platform.processor() or platform.machine(), "cores": os.cpu_count()}


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{package: version(package) for package in VERSIONS}}
