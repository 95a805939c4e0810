"""Reads a run folder for the report.

Any part may be missing: the run may have been killed, or never evaluated. A damaged file is left out, with a warning that
names it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaunigame.errors import DataError
from megaunigame.monitoring.panels import Lines, read_panels
from megaunigame.monitoring.replaced import QUARANTINE_FILE
from megaunigame.monitoring.run_forms import EVALUATION, RUN, SELECTION, check_form, is_number, is_step
from megaunigame.monitoring.selection import SELECTION_FILE
from megaunigame.storage.json_files import read_object
from megaunigame.storage.json_lines import read_lines
from megaunigame.storage.plain_names import readable

METRICS_FILE = "metrics.jsonl"
EVALUATIONS = "evaluation"
"""Folder of the evaluations of a run."""
log = logging.getLogger(__name__)


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
    """run.json: name, command, started, launches, origin, versions, world_size, finished, seconds."""
    recipe: str
    plan: str
    series: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    """Metric -> (steps, values); values that were not finite are left out."""
    times: dict[int, float] = field(default_factory=dict)
    """Step -> when its first line was written, in seconds since 1970."""
    evaluations: list[Evaluation] = field(default_factory=list)
    """In order of their steps."""
    panels: dict[int, Lines] = field(default_factory=dict)
    """Step -> its lines of pictures."""
    selection: dict[str, str] = field(default_factory=dict)
    """What evaluations have decided: `best`, `stopped`."""
    replaced: list[dict[str, Any]] = field(default_factory=list)
    """Samples that were replaced: stream, shard, key, reason."""


def read_run_folder(path: str | Path) -> RunFolder:
    """Read a run folder. Raises DataError when it does not exist."""
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"No run folder at {path}. Give the folder that holds the run's metrics.jsonl.")
    series, times = _metrics(path / METRICS_FILE)
    return RunFolder(
        path=path,
        run=_object(path / "run.json", RUN),
        recipe=_text(path / "recipe.yaml"),
        plan=_text(path / "plan.txt"),
        series=series,
        times=times,
        evaluations=read_evaluations(path),
        panels=read_panels(path),
        selection=_object(path / SELECTION_FILE, SELECTION),
        replaced=read_lines(path / QUARANTINE_FILE),
    )


def read_evaluation(file: Path) -> dict[str, Any]:
    """The results of one evaluation of a run; empty without the file and, with a warning, for a damaged one."""
    return _object(file, EVALUATION)


def read_evaluations(path: Path) -> list[Evaluation]:
    """The evaluations of a run folder, in order of their steps."""
    return _evaluations(_files(path))


def read_first_and(path: Path, step: int) -> list[Evaluation]:
    """The first evaluation of a run folder and that of `step`, which may be the same; a damaged one is left out."""
    files = [file for file in _files(path) if file.stem <= f"step-{step:08d}"]
    return _evaluations(list(dict.fromkeys([*files[:1], *files[-1:]])))


def _files(path: Path) -> list[Path]:
    return sorted((path / EVALUATIONS).glob("step-*.json"))


def _evaluations(files: list[Path]) -> list[Evaluation]:
    found = ((file, read_evaluation(file)) for file in files)
    return [Evaluation(result["step"], result["suites"], file.with_suffix("")) for file, result in found if result]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _object(path: Path, form: Any) -> dict[str, Any]:
    """The JSON object in a file; empty without the file, and for one that is damaged or has another form."""
    if not path.exists():
        return {}
    try:
        entries = read_object(path, "a whole file of a run", DataError, "It is left out.")
        check_form(entries, form, str(path))
    except DataError as error:
        log.warning("%s", error)
        return {}
    return entries


def _metrics(path: Path) -> tuple[dict[str, tuple[list[int], list[float]]], dict[int, float]]:
    series: dict[str, tuple[list[int], list[float]]] = {}
    times: dict[int, float] = {}
    for record in read_lines(path):
        step, time = record.pop("step", None), record.pop("time", None)
        if not is_step(step):
            log.warning("%s: a line without a step is left out.", path)
            continue
        if is_number(time):
            times.setdefault(step, time)
        for name, value in record.items():
            steps, values = series.setdefault(readable(name), ([], []))
            if is_number(value):
                steps.append(step)
                values.append(value)
    return {name: points for name, points in series.items() if points[0]}, times
