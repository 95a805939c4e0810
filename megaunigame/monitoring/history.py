"""Reads a run folder for the report.

Any part may be missing: the run may have been killed, or never evaluated.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaunigame.errors import DataError
from megaunigame.monitoring.monitor import METRICS_FILE
from megaunigame.monitoring.panels import Lines, read_panels


@dataclass
class Evaluation:
    """The results of all suites at one step."""

    step: int
    suites: dict[str, dict[str, Any]]
    """Label -> result of the suite (metrics, tables, pictures, questions)."""
    folder: Path
    """Where the pictures are; file names in the results are relative to it."""


@dataclass
class RunFolder:
    """Everything a run left on disk."""

    path: Path
    run: dict[str, Any]
    """run.json: name, command, started, versions, world_size, finished, seconds."""
    recipe: str
    plan: str
    series: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    """Metric -> (steps, values); values that were not finite are left out."""
    evaluations: list[Evaluation] = field(default_factory=list)
    """In order of their steps."""
    panels: dict[int, Lines] = field(default_factory=dict)
    """Step -> its lines of pictures."""


def read_run_folder(path: str | Path) -> RunFolder:
    """Read a run folder. Raises DataError when it does not exist."""
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"No run folder at {path}. Give the folder that holds the run's metrics.jsonl.")
    return RunFolder(
        path=path,
        run=_json(path / "run.json"),
        recipe=_text(path / "recipe.yaml"),
        plan=_text(path / "plan.txt"),
        series=_series(path / METRICS_FILE),
        evaluations=[
            Evaluation(result["step"], result["suites"], file.with_suffix(""))
            for file in sorted((path / "evaluation").glob("step-*.json"))
            for result in [_json(file)]
        ],
        panels=read_panels(path),
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _series(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    series: dict[str, tuple[list[int], list[float]]] = {}
    # A line without a line break is still being written.
    for line in (line for line in _text(path).splitlines(keepends=True) if line.endswith("\n")):
        record = json.loads(line)
        step = record.pop("step")
        record.pop("time")
        for name, value in record.items():
            steps, values = series.setdefault(name, ([], []))
            if value is not None:
                steps.append(step)
                values.append(value)
    return {name: points for name, points in series.items() if points[0]}
