"""HTML building blocks of the report: everything inline, nothing fetched."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from megaunigame.monitoring.plots import png_uri
from megaunigame.monitoring.run_forms import is_inside
from megaunigame.storage.foreign_text import one_line

log = logging.getLogger(__name__)

STYLE = """
:root { --ink: #1f2933; --muted: #647381; --line: #e4e7eb; --soft: #f5f7f9; --good: #1b7f4b; --bad: #b3362b; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 28px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 21px; margin: 48px 0 12px; padding-bottom: 6px; border-bottom: 2px solid var(--line); }
h3 { font-size: 16px; margin: 26px 0 8px; }
p { margin: 6px 0 12px; }
.muted { color: var(--muted); }
code, pre { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.command { display: block; background: var(--soft); border-radius: 6px; padding: 10px 14px; white-space: pre-wrap; }
pre { background: var(--soft); border-radius: 6px; padding: 14px; overflow-x: auto; margin: 8px 0; }
details { margin: 10px 0; }
summary { cursor: pointer; color: #2f6f9f; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 22px 0; }
.tile { background: var(--soft); border-radius: 8px; padding: 12px 18px; min-width: 140px; }
.tile b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14.5px; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: 13px; }
th, td { padding: 6px 18px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
tr.total td { font-weight: 600; }
.good { color: var(--good); } .bad { color: var(--bad); }
.plot { width: 100%; height: auto; display: block; margin-bottom: 10px; }
.picture { width: 128px; height: auto; image-rendering: pixelated; border-radius: 4px; display: block; }
.asked { display: flex; gap: 20px; margin: 18px 0; align-items: flex-start; }
.asked th:first-child { width: 340px; }
.asked th { min-width: 110px; }
.caption { max-width: 260px; }
"""

THUMBNAIL = 256


def page(title: str, body: str) -> str:
    """A whole document."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """(label, value) pairs as a row of boxes."""
    boxes = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for label, value in values)
    return f'<div class="tiles">{boxes}</div>'


def folded(title: str, text: str) -> str:
    """Collapsed text."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def number(value: float, column: str) -> str:
    """A number in the format of its column: percentages and decibels with one decimal, counts whole."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.1f}" if "%" in column or "dB" in column else f"{value:.3f}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[bool] = (), total: str = "") -> str:
    """Cells are HTML already; `numeric` columns are right-aligned; the row whose first cell is `total` is set bold."""
    kinds = [' class="number"' if flag else "" for flag in numeric or [False] * len(columns)]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, columns, strict=True))
    lines = [
        ('<tr class="total">' if total and row[0] == total else "<tr>")
        + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    ]
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def plot(uri: str, alt: str, legend: str = "") -> str:
    """A picture in full width, under its legend."""
    text = f'<p class="muted">{escape(legend)}</p>' if legend else ""
    return f'{text}<img class="plot" alt="{escape(alt, quote=True)}" src="{uri}">'


def picture(folder: Path, name: str, alt: str) -> str:
    """An inline picture, at most THUMBNAIL pixels wide and high. A note in its place if the file is missing, damaged, or leads
    out of `folder`: a report may be published, and must not show pictures of other folders."""
    path = folder / name
    if not is_inside(name) or not path.resolve().is_relative_to(folder.resolve()):
        log.warning("%s is outside of the run folder: the report does not show it.", one_line(str(path)))
        return '<span class="muted">picture outside of the run folder</span>'
    if not path.is_file():
        return '<span class="muted">picture missing</span>'
    try:
        with Image.open(path, formats=("PNG",)) as image:
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        log.warning("%s cannot be shown (%s: %s).", one_line(str(path)), type(error).__name__, one_line(error))
        return '<span class="muted">picture cannot be read</span>'
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return f'<img class="picture" alt="{escape(alt, quote=True)}" src="{png_uri(buffer.getvalue())}">'
