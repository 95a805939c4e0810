"""Runs the suites of a recipe on the model, and writes their results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from megaunigame.evaluation.suites.base import Suite
from megaunigame.models.base import UnifiedModel, evaluating, leavable
from megaunigame.monitoring import names
from megaunigame.parallel.ranks import Ranks
from megaunigame.storage.whole_files import write_whole


def evaluation_file(folder: str | Path, step: int) -> Path:
    """File of the results after `step` optimizer steps; written when all suites are done."""
    return Path(folder) / "evaluation" / f"step-{step:08d}.json"


def run_evaluation(
    model: UnifiedModel,
    suites: Mapping[str, Suite],
    data_ranks: Ranks,
    step: int,
    folder: str | Path,
    leave_point: Callable[[], None] = UnifiedModel.leave_point,
    say: Callable[[str], None] = lambda line: None,
    around: Callable[[Suite], AbstractContextManager[Ranks]] | None = None,
) -> dict[str, Any]:
    """Run every suite (label -> suite) and return {"step", "seconds", "suites": {label: result}} on every rank.

    All ranks call this together; under ZeRO-3 `model` is the engine's module. `around`: the context in which a suite runs; it
    gives the data ranks for that suite, instead of `data_ranks`. Rank 0 writes
    `folder/evaluation/step-XXXXXXXX.json` and the pictures next to it, in `step-XXXXXXXX/LABEL/`. No weight, no training
    flag and no global random state is changed. What `leave_point` raises, between two model calls and on all ranks together,
    leaves the evaluation: then there is no such file. `say` takes a line for each suite that is done.
    """
    pictures = evaluation_file(folder, step).with_suffix("")
    started = time.monotonic()
    results: dict[str, Any] = {}
    with torch.no_grad(), evaluating(model), leavable(model, leave_point):
        for number, (label, suite) in enumerate(suites.items(), start=1):
            suite_started = time.monotonic()
            with around(suite) if around else nullcontext(data_ranks) as ranks:
                result = suite.run(model, ranks, pictures / label)
            seconds = time.monotonic() - suite_started
            results[label] = {**_under(label, result), "seconds": round(seconds, 2)}
            say(f"evaluated {label} in {seconds:.1f} s ({number} of {len(suites)})")
    evaluation = {"step": step, "seconds": round(time.monotonic() - started, 2), "suites": results}
    if data_ranks.is_main:
        write_whole(evaluation_file(folder, step), json.dumps(evaluation, indent=1))
    return evaluation


def _under(label: str, result: dict[str, Any]) -> dict[str, Any]:
    """File names relative to the folder of the step instead of the folder of the suite."""
    pictures = [{**p, "file": f"{label}/{p['file']}"} for p in result["pictures"]]
    questions = [{**q, "image": f"{label}/{q['image']}" if q["image"] else ""} for q in result["questions"]]
    return {**result, "pictures": pictures, "questions": questions}


def scalars(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation as metrics, `evaluation/<label>/<metric>`."""
    return {
        f"{names.EVALUATION}{label}/{name}": value
        for label, result in evaluation["suites"].items()
        for name, value in result["metrics"].items()
    }


def as_text(evaluation: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> str:
    """The tables of an evaluation for the terminal. A value that has changed since the evaluation `before` is shown with its
    old one: "50.00 -> 75.00"."""
    tables = [
        _table_text(f"{label}: {table['title']}", table["columns"], _with_old(table, _table_of(before, label, table["title"])))
        for label, result in evaluation["suites"].items()
        for table in result["tables"]
    ]
    return "\n\n".join(tables)


def _table_of(evaluation: Mapping[str, Any] | None, label: str, title: str) -> Mapping[str, Any] | None:
    """The table of a suite with this title, if the evaluation has one."""
    tables = evaluation["suites"][label]["tables"] if evaluation and label in evaluation["suites"] else []
    return next((table for table in tables if table["title"] == title), None)


def _with_old(table: Mapping[str, Any], old: Mapping[str, Any] | None) -> list[list[str]]:
    """The rows as texts; rows of both tables are matched by their first cell."""
    columns, rows = table["columns"], [[_cell(value) for value in row] for row in table["rows"]]
    if old is None or old["columns"] != columns:
        return rows
    former = {row[0]: [_cell(value) for value in row] for row in old["rows"]}
    pairs = [(row, former.get(row[0], row)) for row in rows]
    return [[b if a == b else f"{a} -> {b}" for a, b in zip(was, row, strict=True)] for row, was in pairs]


def _table_text(title: str, columns: list[str], rows: list[list[str]]) -> str:
    cells = [columns, *rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))) for line in cells
    ]
    return "\n".join([title, *lines])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
