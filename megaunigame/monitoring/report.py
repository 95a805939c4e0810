"""One HTML page about a run, made from its folder alone: settings, curves, evaluations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path

from megaunigame.monitoring import names, page
from megaunigame.monitoring.attention_plots import heat_figure, per_layer
from megaunigame.monitoring.comparison import suite_section
from megaunigame.monitoring.history import RunFolder, read_run_folder
from megaunigame.monitoring.monitor import clock_time
from megaunigame.monitoring.panels import panels_section
from megaunigame.monitoring.plots import curve_plots, data_uri
from megaunigame.monitoring.replaced import replaced_section
from megaunigame.storage.whole_files import write_whole

REPORT_FILE = "report.html"


def write_report(run_folder: str | Path) -> Path:
    """Write report.html (self-contained) into the run folder and return its path.

    Reads recipe.yaml, plan.txt, run.json, metrics.jsonl and evaluation/; any of them may be missing.
    Raises DataError when the folder does not exist.
    """
    run = read_run_folder(run_folder)
    sections = [header(run), summary(run), curves(run), rows_of_terms(run), replaced_section(run.replaced)]
    sections += [panels_section(run.path, run.panels), *evaluations(run)]
    path = run.path / REPORT_FILE
    text = page.page(_title(run), "\n".join(s for s in sections if s))
    write_whole(path, text.encode("utf-8", "replace"))  # JSON may hold halves of surrogate pairs
    return path


def _title(run: RunFolder) -> str:
    return run.run["name"] if "name" in run.run else run.path.resolve().name


def header(run: RunFolder) -> str:
    """Name, date, command, versions; collapsed recipe and plan."""
    facts = run.run
    parts = [f"<h1>{escape(_title(run))}</h1>"]
    stamps = {word: datetime.fromisoformat(facts[word]) for word in ("started", "finished") if facts.get(word)}
    dates = [escape(f"{word} {stamp:%Y-%m-%d %H:%M %Z}".strip()) for word, stamp in stamps.items()]
    if facts and not facts.get("finished"):
        dates.append("not finished")
    if "world_size" in facts:
        dates.append(escape(f"{facts['world_size']} rank{'s' if facts['world_size'] != 1 else ''}"))
    parts.append(f'<p class="muted">{" · ".join(dates)}</p>')
    if "command" in facts:
        parts.append(f'<code class="command">{escape(facts["command"])}</code>')
    if "versions" in facts:
        versions = " · ".join(f"{escape(name)} {escape(str(value))}" for name, value in facts["versions"].items())
        parts.append(f'<p class="muted">{versions}</p>')
    if run.plan:
        parts.append(page.folded("Plan: model groups, rows, passes, memory", run.plan))
    if run.recipe:
        parts.append(page.folded("Recipe", run.recipe))
    return "\n".join(parts)


def summary(run: RunFolder) -> str:
    """The main numbers."""
    values: list[tuple[str, str]] = []
    losses = {name: points for name, points in run.series.items() if name.startswith(names.LOSS) and name != names.LOSS_TOTAL}
    steps = [points[0][-1] for points in run.series.values()]
    if steps:
        values.append(("optimizer steps", f"{max(steps):,}"))
    if run.run.get("seconds"):
        values.append(("h:mm:ss", clock_time(run.run["seconds"])))
    for name, label in (
        (names.PERF_ROWS_PER_SECOND, "rows/s, median"),
        (names.PERF_TOKENS_PER_SECOND, "tokens/s, median"),
        (names.PERF_USEFUL_TOKENS_PER_SECOND, "useful tokens/s, median"),
        (names.PERF_MFU, "MFU, median"),
    ):
        if name in run.series:
            values.append((label, f"{_significant(statistics.median(run.series[name][1]))}"))
    for name, (_, points) in losses.items():
        values.append((f"{name}, first → last", f"{_mean_of_share(points, first=True):.3f} → {_mean_of_share(points):.3f}"))
    if not values:
        return '<p class="muted">This run has not logged a step.</p>'
    return page.tiles(values)


def _mean_of_share(values: Sequence[float], first: bool = False) -> float:
    """Mean of the first or last twentieth (single steps are noise)."""
    count = max(1, len(values) // 20)
    return statistics.fmean(values[:count] if first else values[-count:])


def _significant(value: float) -> str:
    """Three digits for small numbers, thousands separators for large ones."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def curves(run: RunFolder) -> str:
    """Loss per term, optimization, speed, then other groups of metrics. Attention by layer is one picture."""
    groups: dict[str, list[str]] = {}
    for name in run.series:
        if not name.startswith((names.EVALUATION, names.ROWS)):
            groups.setdefault(name.split("/")[0], []).append(name)
    first = ("loss", "attention", "adversary", "buffer", "optim", "perf")
    order = [g for g in first if g in groups] + sorted(set(groups) - set(first))
    titles = {"loss": "Losses", "optim": "Optimization", "perf": "Throughput", "data": "Data", "buffer": "Hard buffer"}
    parts = []
    for group in order:
        drawn = [n for n in groups[group] if not per_layer(n)]
        # Constant metrics are shown as a number.
        flat = [n for n in drawn if len(set(run.series[n][1])) == 1 and len(run.series[n][1]) > 1]
        moving = {n: run.series[n] for n in drawn if n not in flat}
        parts.append(f"<h2>{titles.get(group, escape(group.capitalize()))}</h2>")
        if len(drawn) < len(groups[group]) and (heat := heat_figure(run.series)):
            legend = "Share of attention that goes across modalities, by layer and step. With targets, white is on the target."
            parts.append(page.plot(data_uri(heat), "attention by layer and step", legend))
        if moving:
            parts.append(page.plot(curve_plots(moving, exact=[names.OPTIM_LR]), f"{group} curves"))
        if flat:
            constant = ", ".join(f"{escape(n)} = {_constant(run.series[n][1][0])}" for n in flat)
            parts.append(f'<p class="muted">Constant: {constant}</p>')
    return "\n".join(parts)


def rows_of_terms(run: RunFolder) -> str:
    """What became of the rows that each term wanted, over the whole run."""
    totals: dict[str, dict[str, float]] = {}
    for name, (_, values) in run.series.items():
        term, slash, what = name.removeprefix(names.ROWS).rpartition("/")
        if name.startswith(names.ROWS) and slash:
            totals.setdefault(term, {})[what] = sum(values)
    if not totals:
        return ""
    columns = ["term", *names.ROW_COUNTS, "dummies %", "cut %"]
    rows = []
    for term, total in totals.items():
        counts = [total.get(what, 0.0) for what in names.ROW_COUNTS]
        wanted, filled, dummies, cut, *_ = counts
        shares = [f"{100 * part / whole:.1f}" if whole else "-" for part, whole in ((dummies, wanted), (cut, filled))]
        rows.append([escape(term), *(f"{count:,.0f}" for count in counts), *shares])
    legend = "A dummy takes the place of a row whose sample lacks what the term needs; a cut row lost text that did not fit."
    return f'<h2>Rows</h2><p class="muted">{legend}</p>' + page.table(columns, rows, [False, *[True] * (len(columns) - 1)])


def _constant(value: float) -> str:
    return f"{value:.0f}" if math.isclose(value, round(value)) and abs(value) >= 1 or value == 0 else f"{value:.3g}"


def evaluations(run: RunFolder) -> list[str]:
    """Every suite of the last evaluation, next to the first."""
    if not run.evaluations:
        return ['<h2>Evaluation</h2><p class="muted">This run was not evaluated.</p>']
    before = run.evaluations[0] if len(run.evaluations) > 1 else None
    after = run.evaluations[-1]
    return [suite_section(label, before, after) for label in after.suites]
