"""Results of a sweep: mean and spread over seeds per arm, and differences to the baseline, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megaunigame.monitoring.names import EVALUATION
from megaunigame.storage.whole_files import write_whole
from megaunigame.sweeping.definition import Sweep
from megaunigame.sweeping.runs import Run, is_done, run_values

TABLE_FILE, RESULTS_FILE = "table.md", "results.csv"
SHARE = re.compile(r"accuracy|consistency|match|share|present|exact|relation|representations")
"""Metrics of an evaluation with such a word in their name are in [0, 1] and shown in %."""

MOST_COLUMNS = 20
"""A table with more columns is transposed: arms become columns."""


@dataclass(frozen=True)
class Result:
    """The metrics of a finished run."""

    arm: str
    seed: int
    values: dict[str, float]
    """Metric -> its value, see `run_values`."""


@dataclass(frozen=True)
class Spread:
    mean: float
    deviation: float | None
    """Standard deviation (n - 1 in the denominator), or standard error for a `difference`; None for a single value."""
    count: int


def collect(runs: Iterable[Run]) -> list[Result]:
    """The results of all finished runs; not of unfinished ones."""
    return [Result(run.arm, run.seed, run_values(run)) for run in runs if is_done(run)]


def missing(sweep: Sweep, results: Iterable[Result]) -> list[str]:
    """One line per metric of the sweep that finished runs did not record."""
    lines = []
    for title, metric in sweep.metrics.items():
        without = [f"{r.arm}/seed-{r.seed}" for r in results if metric not in r.values]
        if without:
            lines.append(f"{metric} ({title}) is missing in {', '.join(without)}")
    return lines


def values_of(results: Iterable[Result], arm: str, metric: str) -> dict[int, float]:
    """Seed -> value, for seeds where the arm has one."""
    return {r.seed: r.values[metric] for r in results if r.arm == arm and metric in r.values}


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and standard deviation; None when there are no values."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def difference(results: Sequence[Result], arm: str, baseline: str, metric: str) -> Spread | None:
    """Mean over the seeds both arms have of (arm - baseline), and its standard error.

    Paired by seed: two arms with one seed see the same data in the same order, so its effect on both cancels.
    """
    ours, theirs = values_of(results, arm, metric), values_of(results, baseline, metric)
    paired = spread([value - theirs[seed] for seed, value in ours.items() if seed in theirs])
    if paired is None or paired.deviation is None:
        return paired
    return Spread(paired.mean, paired.deviation / math.sqrt(paired.count), paired.count)


def scale(metric: str) -> float:
    """Factor to show a value: 100 for fractions."""
    return 100.0 if metric.startswith(EVALUATION) and SHARE.search(metric) else 1.0


def heading(title: str, metric: str) -> str:
    return f"{title} (%)" if scale(metric) == 100.0 else title


def as_markdown(sweep: Sweep, results: Sequence[Result]) -> str:
    """The text of table.md: what was run, the table, a legend."""
    total = len(sweep.arms) * len(sweep.seeds)
    # Metrics that the baseline does not have are not compared.
    compared = {m for m in sweep.metrics.values() if sweep.baseline and (values_of(results, sweep.baseline, m) or not results)}
    columns = ["arm", "seeds"]
    for title, metric in sweep.metrics.items():
        columns += [heading(title, metric), *([f"vs {sweep.baseline}"] if metric in compared else [])]
    rows = [columns]
    for arm in sweep.arms:
        count = sum(r.arm == arm for r in results)
        cells = [arm, str(count)]
        for metric in sweep.metrics.values():
            cells.append(_cell(spread(list(values_of(results, arm, metric).values())), metric, "", count))
            if metric in compared and sweep.baseline == arm:
                cells.append("")
            elif metric in compared:
                cells.append(_cell(difference(results, arm, sweep.baseline, metric), metric, "+", count))
        rows.append(cells)
    if len(columns) > MOST_COLUMNS:
        rows = [list(row) for row in zip(*rows, strict=True)]
    lines = [_line(rows[0]), _line(["---", *["---:"] * (len(rows[0]) - 1)]), *map(_line, rows[1:])]
    state = "All" if len(results) == total else f"PARTIAL: {len(results)} of"
    legend = "Mean ± standard deviation over seeds."
    if sweep.baseline:
        legend += f" vs {sweep.baseline}: mean difference over the seeds both arms have ± its standard error, paired by seed."
    seeds = ", ".join(map(str, sweep.seeds))
    head = f"{state} {total} runs finished: `{sweep.recipe}`, seeds {seeds}; ranks per run: {sweep.ranks}."
    return "\n".join([f"# {sweep.name}", "", head, "", *lines, "", legend, ""])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Spread | None, metric: str, sign: str, runs: int) -> str:
    """`mean ± deviation`; with `n=` if fewer runs than the arm has finished have it."""
    if value is None:
        return "-"
    factor = scale(metric)
    form, spread_form = (".1f", ".1f") if factor == 100.0 else (".4g", "#.2g")
    text = f"{factor * value.mean:{sign}{form}}"
    if value.deviation is not None:
        text += f" ± {factor * value.deviation:{spread_form}}"
    return text if value.count == runs else f"{text} (n={value.count})"


def as_csv(results: Iterable[Result]) -> str:
    """One line per finished run: arm, seed, and the value of every metric it recorded."""
    results = list(results)
    metrics = sorted({name for r in results for name in r.values})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "seed", *metrics])
    writer.writerows([r.arm, r.seed, *(r.values.get(name, "") for name in metrics)] for r in results)
    return out.getvalue()


def write_table(sweep: Sweep, results: Sequence[Result]) -> Path:
    """Write table.md and results.csv into the sweep's folder; returns the path of the table."""
    folder = Path(sweep.output)
    write_whole(folder / RESULTS_FILE, as_csv(results))
    write_whole(folder / TABLE_FILE, as_markdown(sweep, results))
    return folder / TABLE_FILE
