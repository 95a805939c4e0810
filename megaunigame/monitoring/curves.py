"""The curves of a report: which metrics share a chart, in which units, with how many points. static/report.js draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from megaunigame.monitoring import legends, names, page
from megaunigame.monitoring.attention_plots import heat_figure, per_layer
from megaunigame.monitoring.history import RunFolder
from megaunigame.monitoring.launches import Launch
from megaunigame.monitoring.plots import Points, data_uri

MOST_POINTS = 1500
"""Of a series in the page; more steps are averaged."""
MOST_RESULTS = 12
"""Series of an evaluation suite in its chart."""
LEAST_EVALUATIONS = 3
"""Fewer are compared in tables alone."""
FIRST = ("loss", "attention", "adversary", "buffer", "optim", "perf")
TITLES = {"loss": "Losses", "optim": "Optimization", "perf": "Throughput", "data": "Data", "buffer": "Hard buffer"}
TOGETHER = {
    names.LOSS: "Losses of the terms",
    names.WEIGHT: "Factors of the terms",
    f"{names.GRADIENT}norm/": "Norms of the gradients of the terms",
    f"{names.GRADIENT}cosine/": "Cosines between the gradients of the terms",
    "perf/save_": "Saves",
    names.PERF_TOKENS_PER_SECOND: "Tokens per second",
    names.PERF_USEFUL_TOKENS_PER_SECOND: "Tokens per second",
}
"""Beginning of a name -> the chart that has all such metrics."""
EXACT = (names.OPTIM_LR, names.OPTIM_SKIPPED, names.DATA_BAD_SAMPLES, names.WEIGHT, names.EVALUATION, "perf/save_")
"""Beginnings of the names of metrics without noise: they are drawn as they are."""


@dataclass
class ChartBook:
    """The charts of one page, as JSON for its script."""

    marks: list[dict[str, Any]]
    charts: list[dict[str, Any]] = field(default_factory=list)
    steps: list[list[int]] = field(default_factory=list)
    """Each list of steps once: most metrics have the same."""

    def figure(self, title: str, series: Mapping[str, Points], *, wide: bool = False, about: str = "") -> str:
        """The place of a chart of some metrics. Returns HTML."""
        unit, factor = _unit(series)
        points = {name: _binned(*of_name) for name, of_name in series.items()}
        entries = [
            {
                "name": name,
                "about": legends.of_metric(name),
                "x": self._place(steps),
                "y": [_short(factor * value) for value in values],
                "exact": name.startswith(EXACT),
            }
            for name, (steps, values, _) in points.items()
        ]
        each = max(size for _, _, size in points.values())
        self.charts.append({"title": title, "about": about, "unit": unit, "each": each, "series": entries})
        return f'<figure class="chart{" wide" if wide else ""}" data-chart="{len(self.charts) - 1}"></figure>'

    def _place(self, steps: list[int]) -> int:
        if steps not in self.steps:
            self.steps.append(steps)
        return self.steps.index(steps)

    def as_json(self) -> dict[str, Any]:
        return {"marks": self.marks, "steps": self.steps, "charts": self.charts}


def chart_book(launches: Sequence[Launch]) -> ChartBook:
    """An empty book that marks the first step of every launch but the first."""
    again = [launch for launch in launches[1:] if launch.steps]
    return ChartBook([{"step": launch.steps[0], "text": f"launch {launch.number} begins here"} for launch in again])


def curve_sections(run: RunFolder, book: ChartBook) -> list[page.Section]:
    """Loss per term, optimization, speed, then other groups of metrics. Attention by layer is one picture."""
    groups: dict[str, list[str]] = {}
    for name in run.series:
        if not name.startswith((names.EVALUATION, names.ROWS)):
            groups.setdefault(name.split("/")[0], []).append(name)
    order = [g for g in FIRST if g in groups] + sorted(set(groups) - set(FIRST))
    return [page.Section(TITLES.get(g, g.capitalize()), _group(run, book, groups[g])) for g in order]


def _group(run: RunFolder, book: ChartBook, of_group: list[str]) -> str:
    drawn = [name for name in of_group if not per_layer(name)]
    # Constant metrics are shown as a number.
    flat = [name for name in drawn if len(set(run.series[name][1])) == 1 and len(run.series[name][1]) > 1]
    charts: dict[str, dict[str, Points]] = {}
    for name in drawn:
        if name not in flat:
            title = next((title for begin, title in TOGETHER.items() if name.startswith(begin)), name)
            charts.setdefault(title, {})[name] = run.series[name]
    parts = []
    if len(drawn) < len(of_group) and (heat := heat_figure(run.series)):
        legend = "Share of attention that goes across modalities, by layer and step. With targets, white is on the target."
        parts.append(page.plot(data_uri(heat), "attention by layer and step", legend))
    if charts:
        figures = [_chart(book, title, series) for title, series in charts.items()]
        parts.append(f'<div class="charts">{"".join(figures)}</div>')
        parts.append("<noscript>The curves need JavaScript; their numbers are in metrics.jsonl.</noscript>")
    if flat:
        constant = ", ".join(f"{name} = {_constant(name, run.series)}" for name in flat)
        parts.append(f'<p class="muted">Constant: {escape(constant)}</p>')
    return "\n".join(parts)


def _chart(book: ChartBook, title: str, series: Mapping[str, Points]) -> str:
    if len(series) == 1:
        (name,) = series
        return book.figure(name, series, about=legends.of_metric(name))
    return book.figure(title, series, wide=len(series) > 2)


def evaluation_chart(run: RunFolder, book: ChartBook, label: str) -> str:
    """The results of one suite by step; empty when there are too few evaluations for a curve."""
    prefix = f"{names.EVALUATION}{label}/"
    results = {name: points for name, points in run.series.items() if name.startswith(prefix) and not per_layer(name)}
    drawn = {name: points for name, points in results.items() if len(points[0]) >= LEAST_EVALUATIONS}
    if not drawn:
        return ""
    # Means first, then those with the shortest names, which are the least detailed.
    order = sorted(drawn, key=lambda name: (not name.endswith("mean"), name.count("/")))[:MOST_RESULTS]
    left = len(drawn) - len(order)
    more = page.note(f"{left} more results by step are in metrics.jsonl.") if left else ""
    shown = {name: drawn[name] for name in order}
    return f'<div class="charts">{book.figure("Results by step", shown, wide=True)}</div>{more}'


def _unit(series: Mapping[str, Points]) -> tuple[str, float]:
    """The unit in which a chart shows its metrics, and the factor to it. Metrics of one chart have one unit."""
    name, (_, values) = next(iter(series.items()))
    if name.endswith("_bytes"):
        return ("GiB", 2.0**-30) if max(values) >= 2**30 else ("MiB", 2.0**-20)
    if name.endswith("_seconds"):
        return "s", 1.0
    if name in (names.PERF_MFU, names.PERF_USEFUL_TOKEN_SHARE):
        return "%", 100.0
    return "", 1.0


def _binned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float], int]:
    """At most MOST_POINTS points, and of how many each is the mean: its step is the last of them."""
    size = -(-len(steps) // MOST_POINTS)
    if size <= 1:
        return list(steps), list(values), 1
    starts = np.arange(0, len(values), size)
    counts = np.diff(np.append(starts, len(values)))
    means = np.add.reduceat(np.asarray(values, dtype=np.float64), starts) / counts
    return [int(steps[start + count - 1]) for start, count in zip(starts, counts, strict=True)], means.tolist(), size


def _short(value: float) -> float:
    """Five digits: more cannot be seen, and would make the page large."""
    return float(f"{value:.5g}")


def _constant(name: str, series: Mapping[str, Points]) -> str:
    unit, factor = _unit({name: series[name]})
    value = factor * series[name][1][0]
    plain = f"{value:,.0f}" if math.isclose(value, round(value)) and abs(value) >= 1 or value == 0 else f"{value:.3g}"
    return f"{plain} {unit}".strip()
