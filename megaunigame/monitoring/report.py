"""One HTML page about a run, made from its folder alone: settings, launches, curves, pictures, evaluations."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path

from megaunigame.monitoring import names, page
from megaunigame.monitoring.comparison import suite_section
from megaunigame.monitoring.curves import ChartBook, chart_book, curve_sections, evaluation_chart
from megaunigame.monitoring.history import RunFolder, read_run_folder
from megaunigame.monitoring.launches import launches_of, launches_section, seconds_of
from megaunigame.monitoring.panels import panels_sections
from megaunigame.monitoring.related import REPORT_FILE, related_section
from megaunigame.monitoring.replaced import replaced_section
from megaunigame.monitoring.selection import BEST, STOPPED
from megaunigame.monitoring.units import count, duration, memory, significant
from megaunigame.storage.whole_files import write_whole


def write_report(run_folder: str | Path) -> Path:
    """Write report.html (self-contained) into the run folder and return its path.

    Reads recipe.yaml, plan.txt, run.json, metrics.jsonl and evaluation/; any of them may be missing.
    Raises DataError when the folder does not exist.
    """
    run = read_run_folder(run_folder)
    launches = launches_of(run)
    book = chart_book(launches)
    sections = [
        *launches_section(run, launches),
        *related_section(run),
        *curve_sections(run, book),
        *rows_of_terms(run),
        *replaced_section(run.replaced),
        *panels_sections(run.path, run.panels),
        *evaluations(run, book),
    ]
    path = run.path / REPORT_FILE
    text = page.page(_title(run), f"{header(run)}\n{summary(run, seconds_of(run, launches))}", sections, book.as_json())
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
    parts += [f'<p class="muted">{escape(run.selection[what])}</p>' for what in (BEST, STOPPED) if run.selection.get(what)]
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


def summary(run: RunFolder, seconds: float) -> str:
    """The main numbers. `seconds`: of all launches together; 0: not known."""
    values: list[tuple[str, str]] = []
    losses = {name: points for name, points in run.series.items() if name.startswith(names.LOSS) and name != names.LOSS_TOTAL}
    steps = [points[0][-1] for points in run.series.values()]
    if steps:
        values.append(("optimizer steps", f"{max(steps):,}"))
    if seconds:
        values.append(("time, all launches", duration(seconds)))
    values += [("tokens read, with padding", count(tokens))] if (tokens := _tokens(run)) else []
    for name, label, factor, unit in (
        (names.PERF_ROWS_PER_SECOND, "rows/s, median", 1, ""),
        (names.PERF_TOKENS_PER_SECOND, "tokens/s, median", 1, ""),
        (names.PERF_USEFUL_TOKENS_PER_SECOND, "useful tokens/s, median", 1, ""),
        (names.PERF_MFU, "MFU, median", 100, " %"),
    ):
        if name in run.series:
            values.append((label, f"{significant(factor * statistics.median(run.series[name][1]))}{unit}"))
    if names.PERF_PEAK_MEMORY_BYTES in run.series:
        values.append(("largest memory of a rank", memory(max(run.series[names.PERF_PEAK_MEMORY_BYTES][1]))))
    for name, (_, points) in losses.items():
        values.append((f"{name}, first → last", f"{loss_text(points, first=True)} → {loss_text(points)}"))
    if not values:
        return page.note("This run has not logged a step.")
    return page.tiles(values)


def _tokens(run: RunFolder) -> float:
    """Tokens that the language model has read in the steps of the history; 0: not known."""
    speed, seconds = (run.series.get(name, ([], [])) for name in (names.PERF_TOKENS_PER_SECOND, names.PERF_STEP_SECONDS))
    of_step = dict(zip(*seconds, strict=True))
    return sum(rate * of_step.get(step, 0.0) for step, rate in zip(*speed, strict=True))


def loss_text(values: Sequence[float], first: bool = False) -> str:
    """A mean with three decimals; a small one with three digits, so that it does not read as zero."""
    mean = _mean_of_share(values, first)
    return f"{mean:.3f}" if abs(mean) >= 0.1 or not mean else f"{mean:.3g}"


def _mean_of_share(values: Sequence[float], first: bool = False) -> float:
    """Mean of the first or last twentieth (single steps are noise)."""
    count = max(1, len(values) // 20)
    return statistics.fmean(values[:count] if first else values[-count:])


def rows_of_terms(run: RunFolder) -> list[page.Section]:
    """What became of the rows that each term wanted, over the whole run."""
    totals: dict[str, dict[str, float]] = {}
    for name, (_, values) in run.series.items():
        term, slash, what = name.removeprefix(names.ROWS).rpartition("/")
        if name.startswith(names.ROWS) and slash:
            totals.setdefault(term, {})[what] = sum(values)
    if not totals:
        return []
    columns = ["term", *names.ROW_COUNTS, "dummies %", "cut %"]
    rows = []
    for term, total in totals.items():
        counts = [total.get(what, 0.0) for what in names.ROW_COUNTS]
        wanted, filled, dummies, cut, *_ = counts
        shares = [f"{100 * part / whole:.1f}" if whole else "-" for part, whole in ((dummies, wanted), (cut, filled))]
        rows.append([escape(term), *(f"{count:,.0f}" for count in counts), *shares])
    legend = "A dummy takes the place of a row whose sample lacks what the term needs; a cut row lost text that did not fit."
    return [page.Section("Rows", page.note(legend) + page.table(columns, rows, [False, *[True] * (len(columns) - 1)]))]


def evaluations(run: RunFolder, book: ChartBook) -> list[page.Section]:
    """Every suite of the last evaluation, next to the first."""
    if not run.evaluations:
        return [page.Section("Evaluation", page.note("This run was not evaluated."))]
    before = run.evaluations[0] if len(run.evaluations) > 1 else None
    after = run.evaluations[-1]
    return [suite_section(label, before, after, evaluation_chart(run, book, label)) for label in after.suites]
