"""HTML building blocks of the report: everything inline, nothing fetched.

A policy in the page itself has the browser refuse what is not of the report: it runs one script, which is named by its hash,
and shows pictures that are part of the page.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from megaunigame.monitoring import legends
from megaunigame.monitoring.plots import png_uri
from megaunigame.monitoring.run_forms import is_inside
from megaunigame.storage.foreign_text import one_line

log = logging.getLogger(__name__)

STATIC = Path(__file__).with_name("static")
SHOWN, SMALL = 384, 128
"""Pixels: the largest width and height at which a picture is shown, and up to which whole multiples of small ones are."""
KEPT = 1024
"""Largest width and height of a picture in the page; it opens in this size."""
QUALITY = 90
"""Of a picture that is larger than SHOWN, as JPEG: a PNG would be ten times as large."""
NO_NAME = re.compile(r"[^a-z0-9]+")


NO_CURVES: Mapping[str, Any] = {"marks": [], "steps": [], "charts": []}


@dataclass(frozen=True)
class Section:
    """A part of the page with an entry in its contents."""

    title: str
    body: str
    """HTML."""


def page(title: str, head: str, sections: Sequence[Section], curves: Mapping[str, Any] = NO_CURVES) -> str:
    """A whole document. `head`: HTML above the first section; `curves`: what the script draws."""
    style, script = (STATIC / "report.css").read_text("utf-8"), (STATIC / "report.js").read_text("utf-8")
    sha256 = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{sha256}'"
    names = _names(sections)
    entries = "".join(f'<li><a href="#{name}">{escape(s.title)}</a></li>' for name, s in zip(names, sections, strict=True))
    parts = [
        f'<section id="{name}"><h2>{escape(s.title)}</h2>\n{s.body}</section>' for name, s in zip(names, sections, strict=True)
    ]
    # JSON may hold any text of a run: without <, none of it can end the element.
    data = json.dumps(curves, separators=(",", ":")).replace("<", "\\u003c")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<div class="layout">
<nav class="contents"><details open><summary>Contents</summary><ul>{entries}</ul></details></nav>
<main>
{head}
{chr(10).join(parts)}
</main>
</div>
<dialog id="enlarged"><img alt=""><p></p></dialog>
<script type="application/json" id="curves">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def _names(sections: Sequence[Section]) -> list[str]:
    """A name for the link to each section: no two are equal, and none is that of another element of the page."""
    return [f"{number}-{NO_NAME.sub('-', s.title.lower()).strip('-')}" for number, s in enumerate(sections, start=1)]


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """(label, value) pairs as a row of boxes."""
    boxes = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for label, value in values)
    return f'<div class="tiles">{boxes}</div>'


def folded(title: str, text: str) -> str:
    """Collapsed text."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def note(text: str) -> str:
    """A paragraph of plain text, in a paler color."""
    return f'<p class="muted">{escape(text)}</p>'


def number(value: float, column: str) -> str:
    """A number in the format of its column: percentages and decibels with one decimal, counts whole."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.1f}" if "%" in column or "dB" in column else f"{value:.3f}"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    numeric: Sequence[bool] = (),
    total: str = "",
    about: Mapping[str, str] | None = None,
    *,
    legend: bool = True,
) -> str:
    """A table, and what its columns mean.

    Cells are HTML already; `numeric` columns are right-aligned; the row whose first cell is `total` is set bold. `about`:
    column -> explanation, before those of legends.py; tooltips have them, and below the table a list if `legend`.
    """
    kinds = [' class="number"' if flag else "" for flag in numeric or [False] * len(columns)]
    meanings = {name: meaning for name in columns if (meaning := (about or {}).get(name) or legends.of_column(name))}
    heads = [f"<th{kind}{_title(meanings.get(name))}>{escape(name)}</th>" for kind, name in zip(kinds, columns, strict=True)]
    lines = [
        ('<tr class="total">' if total and row[0] == total else "<tr>")
        + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    ]
    body = f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll">{body}</div>{_legend(meanings) if legend else ""}'


def _title(meaning: str | None) -> str:
    return f' title="{escape(meaning, quote=True)}"' if meaning else ""


def _legend(meanings: Mapping[str, str]) -> str:
    """Collapsed: also for those who cannot hover. Columns of one meaning, such as before and after, share an entry."""
    entries: dict[str, list[str]] = {}
    for name, meaning in meanings.items():
        entries.setdefault(meaning, []).append(name)
    if not entries:
        return ""
    items = "".join(f"<dt>{escape('; '.join(names))}</dt><dd>{escape(meaning)}</dd>" for meaning, names in entries.items())
    return f'<details class="columns"><summary>What the columns mean</summary><dl>{items}</dl></details>'


def plot(uri: str, alt: str, legend: str = "") -> str:
    """A picture in full width, under its legend. On a narrow page it can be scrolled, so that its texts stay readable."""
    text = note(legend) if legend else ""
    return f'{text}<div class="scroll"><img class="plot" alt="{escape(alt, quote=True)}" src="{uri}"></div>'


def picture(folder: Path, name: str, alt: str) -> str:
    """An inline picture that opens on a click. A note in its place if the file is missing, damaged, or leads out of `folder`: a
    report may be published, and must not show pictures of other folders."""
    path = folder / name
    if not is_inside(name) or not path.resolve().is_relative_to(folder.resolve()):
        log.warning("%s is outside of the run folder: the report does not show it.", one_line(str(path)))
        return '<span class="muted">picture outside of the run folder</span>'
    if not path.is_file():
        return '<span class="muted">picture missing</span>'
    try:
        with Image.open(path, formats=("PNG",)) as image:
            pixels = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        log.warning("%s cannot be shown (%s: %s).", one_line(str(path)), type(error).__name__, one_line(error))
        return '<span class="muted">picture cannot be read</span>'
    size = f"{pixels.width} x {pixels.height}"
    width, times = _shown_width(pixels.width, pixels.height)
    sizes = f'width="{width}" data-size="{size}"{" data-enlarged" if times > 1 else ""}'
    shown = f'<img class="picture" {sizes} alt="{escape(alt, quote=True)}" src="{_uri(pixels)}">'
    return f'<button class="enlarge" type="button" title="Enlarge">{shown}</button>'


def _shown_width(width: int, height: int) -> tuple[int, int]:
    """The width at which a picture is shown, and how many times its own that is."""
    largest = max(width, height, 1)
    times = max(1, SMALL // largest)
    return max(1, round(width * min(1, SHOWN / largest))) * times, times


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    if max(image.size) <= SHOWN:
        image.save(buffer, "PNG")
        return png_uri(buffer.getvalue())
    image.thumbnail((KEPT, KEPT))
    image.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
