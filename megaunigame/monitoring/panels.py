"""Lines of pictures that a step leaves behind: `panels/step-XXXXXXXX.json` and PNG files beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from megaunigame.monitoring import page

FOLDER = "panels"
SHOWN = 3
"""Steps the report shows: the first, the middle and the last."""


@dataclass
class PanelStep:
    """The lines of one step, as read back."""

    step: int
    lines: list[dict[str, dict[str, str]]]
    """Per line: `texts` by title, and `files` (relative to the run folder) by title."""


def write_panels(folder: Path, step: int, panels: Sequence[tuple[Mapping[str, str], Mapping[str, Tensor]]]) -> None:
    """Write (texts, pictures) lines; pictures are uint8 (3, H, W). The index appears last, so a reader finds all its files."""
    name = f"step-{step:08d}"
    (folder / FOLDER).mkdir(exist_ok=True)
    lines = []
    for number, (texts, pictures) in enumerate(panels):
        files = {}
        for column, (title, picture) in enumerate(pictures.items()):
            files[title] = f"{FOLDER}/{name}-{number}-{column}.png"
            Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy())).save(folder / files[title])
        lines.append({"texts": dict(texts), "files": files})
    fresh = folder / FOLDER / f"{name}.tmp"
    fresh.write_text(json.dumps({"step": step, "lines": lines}, indent=1), encoding="utf-8")
    os.replace(fresh, folder / FOLDER / f"{name}.json")


def read_panels(folder: Path) -> list[PanelStep]:
    """All steps with panels, in order."""
    found = (json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / FOLDER).glob("step-*.json")))
    return [PanelStep(entry["step"], entry["lines"]) for entry in found]


def panels_section(folder: Path, steps: Sequence[PanelStep]) -> str:
    """The first, the middle and the last step with pictures; nothing when there is none."""
    if not steps:
        return ""
    chosen = sorted({0, len(steps) // 2, len(steps) - 1})[:SHOWN]
    parts = ["<h2>Attacked pictures</h2>"]
    for step in (steps[i] for i in chosen):
        first = step.lines[0]
        columns = [*first["files"], *first["texts"]]
        rows = [
            [
                *(page.picture(folder / file, f"{title}, step {step.step}") for title, file in line["files"].items()),
                *(escape(text) for text in line["texts"].values()),
            ]
            for line in step.lines
        ]
        parts.append(f"<h3>Step {step.step:,}</h3>" + page.table(columns, rows, [False] * len(columns)))
    return "\n".join(parts)
