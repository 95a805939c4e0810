"""Links from the report of a run to those of other runs: what it began with, and its neighbors. All of them are relative, so
they hold when the folder of the runs is moved. Nothing of the other runs is read: a report may be published."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from html import escape
from itertools import islice
from pathlib import Path
from urllib.parse import quote

from megaunigame.monitoring import page
from megaunigame.monitoring.history import METRICS_FILE, RunFolder

log = logging.getLogger(__name__)
REPORT_FILE = "report.html"
SWEEP_FILE = "sweep_run.json"
"""In each run of a sweep, whose folders are OUTPUT/ARM/seed-S."""
ORIGINS = {
    "resumed": "Goes on from the checkpoint",
    "weights_from": "Began with the weights",
    "adapter": "Began with the adapter",
    "model": "Model folder",
}
MOST_FOLDERS, MOST_LINKS = 2000, 60
NUMBERS = re.compile(r"(\d+)")


def related_section(run: RunFolder) -> list[page.Section]:
    """What the run began with, and the runs next to it; nothing if none is known."""
    origin, here = run.run.get("origin", {}), run.path.resolve()
    began = [f"<li>{words}: {_link(here, Path(origin[name]))}</li>" for name, words in ORIGINS.items() if origin.get(name)]
    parts = [f"<ul>{''.join(began)}</ul>"] if began else []
    neighbors = _neighbors(run.path)
    if neighbors:
        items = "".join(f"<li>{_link(here, folder)}</li>" for folder in neighbors[:MOST_LINKS])
        more = f" The first {MOST_LINKS} of {len(neighbors)}." if len(neighbors) > MOST_LINKS else ""
        where = "of the same sweep" if (run.path / SWEEP_FILE).is_file() else "in the same folder"
        text = f"Other runs {where} ({len(neighbors)}).{more} Those without a link have not written a report yet."
        parts.append(f"<details open><summary>{escape(text)}</summary><ul>{items}</ul></details>")
    return [page.Section("Related runs", "".join(parts))] if parts else []


def _link(here: Path, place: Path) -> str:
    """The path of a folder as seen from the run folder, with a link if it belongs to a run that has a report."""
    try:
        place = place.parent.resolve() / place.name  # as `here`: else a page that is opened through a link misses it
        target = Path(os.path.relpath(place, here))
        report = next((file for file in _reports(place) if file.is_file()), None)
    except (OSError, ValueError):  # a name that no file can have
        return f"<code>{escape(str(place))}</code>"
    text = f"<code>{escape(str(target))}</code>"
    if report is None:
        return text
    return f'<a href="{quote(os.path.relpath(report, here))}">{text}</a>'


def _reports(place: Path) -> Iterator[Path]:
    """Where the report is of a run folder, and of the run of a step folder."""
    yield place / REPORT_FILE
    if place.parent.name == "checkpoints":
        yield place.parents[1] / REPORT_FILE


def _neighbors(path: Path) -> list[Path]:
    """Run folders next to this one, or of the same sweep, by name with numbers in their order."""
    here = path.resolve()
    try:
        if (path / SWEEP_FILE).is_file():
            folders = list(islice(here.parents[1].glob("*/seed-*"), MOST_FOLDERS))
        else:
            folders = list(islice(here.parent.iterdir(), MOST_FOLDERS))
        runs = [folder for folder in folders if folder != here and _is_run(folder)]
    except OSError as error:
        log.warning("The report of %s does not name the runs next to it: %s", path, error)
        return []
    return sorted(runs, key=_by_number)


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file() or (folder / METRICS_FILE).is_file()


def _by_number(folder: Path) -> list[str | int]:
    """seed-2 comes before seed-10. Every second part of the split is a number."""
    return [int(part) if place % 2 else part for place, part in enumerate(NUMBERS.split(str(folder)))]
