"""Lines of pictures of a step: `panels/step-XXXXXXXX.json` and PNG files next to it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from megaunigame.errors import DataError
from megaunigame.monitoring import page
from megaunigame.monitoring.run_forms import PANELS, check_form
from megaunigame.pixels import Panel, as_image
from megaunigame.storage.json_files import read_object
from megaunigame.storage.whole_files import write_whole

log = logging.getLogger(__name__)
FOLDER = "panels"
UNTITLED = "Pictures"
"""Heading of lines from runs before lines had titles."""


Lines = list[dict[str, Any]]
"""Of one step, as read from disk. Per line: its `title`, `texts` by name, and `files` (relative to the run folder) by name."""


def write_panels(folder: Path, step: int, panels: Sequence[Panel]) -> None:
    """Write lines of pictures. The index is written last, so a reader finds all its files."""
    name = f"step-{step:08d}"
    (folder / FOLDER).mkdir(exist_ok=True)
    lines = []
    for number, panel in enumerate(panels):
        files = {}
        for column, (title, picture) in enumerate(panel.pictures.items()):
            files[title] = f"{FOLDER}/{name}-{number}-{column}.png"
            as_image(picture).save(folder / files[title])
        lines.append({"title": panel.title, "texts": panel.texts, "files": files})
    write_whole(folder / FOLDER / f"{name}.json", json.dumps({"step": step, "lines": lines}, indent=1))


def read_panels(folder: Path) -> dict[int, Lines]:
    """Step -> its lines, in order. A damaged file is left out, with a warning."""
    panels: dict[int, Lines] = {}
    for file in sorted((folder / FOLDER).glob("step-*.json")):
        try:
            entry = read_object(file, "pictures of a step", DataError, "It is left out.")
            check_form(entry, PANELS, str(file))
        except DataError as error:
            log.warning("%s", error)
            continue
        panels[entry["step"]] = entry["lines"]
    return panels


def panels_sections(folder: Path, steps: dict[int, Lines]) -> list[page.Section]:
    """A section for each title: the first, the middle and the last step with its pictures."""
    titles = dict.fromkeys(line.get("title", UNTITLED) for lines in steps.values() for line in lines)
    sections = []
    for title in titles:
        lines_of = {step: [line for line in lines if line.get("title", UNTITLED) == title] for step, lines in steps.items()}
        shown = [step for step, lines in lines_of.items() if lines]
        some = [shown[i] for i in sorted({0, len(shown) // 2, len(shown) - 1})]
        tables = [f"<h3>Step {step:,}</h3>{_lines_table(folder, step, lines_of[step], step == some[-1])}" for step in some]
        left = len(shown) - len(some)
        more = page.note(f"{left} more steps have pictures in the folder {FOLDER}.") if left else ""
        sections.append(page.Section(title, "\n".join(tables) + more))
    return sections


def _lines_table(folder: Path, step: int, lines: Lines, legend: bool) -> str:
    pictures = dict.fromkeys(name for line in lines for name in line["files"])
    texts = dict.fromkeys(name for line in lines for name in line["texts"])
    rows = []
    for line in lines:
        files = line["files"]
        shown = [page.picture(folder, files[name], f"{name}, step {step}") if name in files else "" for name in pictures]
        rows.append([*shown, *(escape(line["texts"].get(name, "")) for name in texts)])
    return page.table([*pictures, *texts], rows, legend=legend)
