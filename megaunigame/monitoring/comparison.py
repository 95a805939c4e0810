"""Results of the first and the last evaluation, side by side."""

from __future__ import annotations

import filecmp
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from megaunigame.monitoring import page
from megaunigame.monitoring.attention_plots import curves_figure, layers_of, read_curves
from megaunigame.monitoring.history import Evaluation
from megaunigame.monitoring.legends import AFTER, BEFORE
from megaunigame.monitoring.plots import data_uri

Cell = str | int | float | None
LONG_TABLE = 20
"""Tables with more rows are collapsed."""


def suite_section(label: str, before: Evaluation | None, after: Evaluation, by_step: str) -> page.Section:
    """Tables, pictures and questions of one suite; `before` is None in a run with one evaluation; `by_step`: HTML."""
    if before is not None and label not in before.suites:
        before = None
    steps = f"Measured at step {after.step:,}."
    if before:
        steps = f"Before: step {before.step:,}. After: step {after.step:,}. Columns that are equal in both are shown once."
    old_tables = {t["title"]: t for t in before.suites[label]["tables"]} if before else {}
    parts = [
        page.note(steps),
        by_step,
        attention_curves(label, before, after),
        *(compared_table(old_tables.get(t["title"]), t) for t in after.suites[label]["tables"]),
        all_metrics(before.suites[label]["metrics"] if before else {}, after.suites[label]["metrics"]),
        pictures_table(label, before, after),
        questions(label, before, after),
    ]
    return page.Section(f"Evaluation: {label}", "\n".join(part for part in parts if part))


def all_metrics(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> str:
    """Every number of a suite that is not of a layer, collapsed."""
    names = [name for name, value in after.items() if value is not None and not layers_of([name])]
    if not names:
        return ""
    rows = []
    for name in names:
        old, new = before.get(name), after[name]
        assert new is not None
        change = [f"{new - old:+.4g}" if old is not None and math.isfinite(new - old) else "–"] if before else []
        old_cell = ["–" if old is None else f"{old:.4g}"] if before else []
        rows.append([escape(name), *old_cell, f"{new:.4g}", *change])
    heads = ["metric", "before", "after", "difference"] if before else ["metric", "value"]
    meanings = {"before": "At the first evaluation.", "after": "At the last evaluation.", "value": "At the only evaluation."}
    table = page.table(heads, rows, [False, *[True] * (len(heads) - 1)], about=meanings)
    return f"<details><summary>All metrics ({len(names)})</summary>{table}</details>"


def attention_curves(label: str, before: Evaluation | None, after: Evaluation) -> str:
    """The plot of a suite that measured attention by layer; empty for any other suite."""
    curves = read_curves(after.suites[label]["metrics"])
    if not curves:
        return ""
    figure = curves_figure(curves, read_curves(before.suites[label]["metrics"]) if before else None)
    legend = "Share of attention that goes across modalities, mean over samples; bands: one standard deviation over samples."
    return page.plot(data_uri(figure), "attention by layer", legend)


def compared_table(before: dict[str, Any] | None, after: dict[str, Any]) -> str:
    """A table; each numeric column that changed is split into before and after, others are shown once.

    Rows are matched by their first cell.
    """
    columns, rows = after["columns"], after["rows"]
    old = {row[0]: row for row in before["rows"]} if before and before["columns"] == columns else {}
    changed = [_is_numeric(rows, i) and any(r[0] in old and old[r[0]][i] != r[i] for r in rows) for i in range(len(columns))]
    head = _heads(dict(zip(columns, changed, strict=True)))
    numeric = [_is_numeric(rows, i) for i in range(len(columns)) for _ in range(1 + changed[i])]
    body = []
    for row in rows:
        cells: list[str] = []
        for i, value in enumerate(row):
            if changed[i]:
                cells.append(_cell(old[row[0]][i] if row[0] in old else None, columns[i]))
            cells.append(_cell(value, columns[i]))
        body.append(cells)
    total = escape(str(rows[-1][0])) if rows and str(rows[-1][0]).startswith(("all", "mean")) else ""
    about = {head: text for name, text in after.get("about", {}).items() for head in (name, *_heads({name: True}))}
    table = page.table(head, body, numeric, total, about)
    if len(rows) > LONG_TABLE:
        return f"<details><summary>{escape(after['title'])}: {len(rows)} rows</summary>{table}</details>"
    return f"<h3>{escape(after['title'])}</h3>{table}"


def _heads(changed: dict[str, bool]) -> list[str]:
    """Headings of columns, of which those that changed are shown twice."""
    return [head for name, twice in changed.items() for head in ([f"{name}{BEFORE}", f"{name}{AFTER}"] if twice else [name])]


def _is_numeric(rows: Sequence[Sequence[Cell]], column: int) -> bool:
    return any(isinstance(row[column], int | float) for row in rows)


def _cell(value: Cell, column: str) -> str:
    if value is None:
        return "–"
    return escape(value) if isinstance(value, str) else page.number(value, column)


def pictures_table(label: str, before: Evaluation | None, after: Evaluation) -> str:
    """One line per sample; a column whose pictures changed between the evaluations appears twice."""
    entries = after.suites[label]["pictures"]
    if not entries:
        return ""
    old = {(p["row"], p["column"]): p["file"] for p in before.suites[label]["pictures"]} if before else {}
    files = {(p["row"], p["column"]): p["file"] for p in entries}
    captions = {p["row"]: p["caption"] for p in entries}
    columns = dict.fromkeys(p["column"] for p in entries)
    changed = {c: before is not None and _differs(c, old, files, before, after) for c in columns}
    body = []
    for row, caption in captions.items():
        cells = [f'<div class="caption">{escape(caption)}</div>']
        for c in columns:
            alt = f"{c}: {caption}"
            if before is not None and changed[c]:
                cells.append(page.picture(before.folder, old[row, c], alt) if (row, c) in old else "–")
            cells.append(page.picture(after.folder, files[row, c], alt) if (row, c) in files else "–")
        body.append(cells)
    return "<h3>Pictures</h3>" + page.table(["caption", *_heads(changed)], body)


def _differs(column: str, old: dict, files: dict, before: Evaluation, after: Evaluation) -> bool:
    pairs = [(before.folder / old[key], after.folder / files[key]) for key in files if key[1] == column and key in old]
    return any(a.is_file() and b.is_file() and not filecmp.cmp(a, b, shallow=False) for a, b in pairs)


def questions(label: str, before: Evaluation | None, after: Evaluation) -> str:
    """Questions grouped by their picture, with the answers of both evaluations: right ones green, wrong ones red."""
    entries = after.suites[label]["questions"]
    if not entries:
        return ""
    old = {(q["image"], q["question"]): q for q in before.suites[label]["questions"]} if before else {}
    head = ["question", "answer"] + (["before", "after"] if before else ["predicted"])
    parts = ["<h3>Questions and answers</h3>"]
    images = list(dict.fromkeys(q["image"] for q in entries))
    for image in images:
        body = []
        for q in (q for q in entries if q["image"] == image):
            cells = [escape(q["question"]), escape(q["answer"])]
            if before:
                cells.append(_answer(old[image, q["question"]]) if (image, q["question"]) in old else "–")
            body.append([*cells, _answer(q)])
        shown = (
            page.picture(after.folder, image, "the picture asked about") if image else '<span class="muted">text only</span>'
        )
        # The columns of all these tables are the same: the last one explains them.
        answered = page.table(head, body, legend=image == images[-1])
        parts.append(f'<div class="asked">{shown}<div class="answers">{answered}</div></div>')
    return "\n".join(parts)


def _answer(question: dict[str, Any]) -> str:
    mark, css = ("✓", "good") if question["correct"] else ("✗", "bad")
    return f'<span class="{css}">{mark} {escape(question["predicted"]) or "(nothing)"}</span>'
