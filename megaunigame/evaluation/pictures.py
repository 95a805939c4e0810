"""Pictures of an evaluation, as files and as one contact sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from megaunigame.evaluation.lockstep import gathered, gathered_to_main
from megaunigame.parallel.ranks import Ranks
from megaunigame.pixels import Panel, as_image

CELL, TEXT_WIDTH, GAP = 160, 260, 10


def save_png(picture: Tensor, path: Path) -> None:
    """Write a uint8 (3, h, w) picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    as_image(picture).save(path)


def write_panels(own: Sequence[Panel], data_ranks: Ranks, folder: Path) -> list[dict[str, str]]:
    """Collective: write the pictures of all ranks and a contact sheet on rank 0; returns the entries for the report."""
    panels = gathered_to_main(data_ranks, own)
    for panel in panels:
        for name, picture in panel.pictures.items():
            save_png(picture, folder / _file(panel, name))
    if panels:
        contact_sheet(panels).save(folder / "contact-sheet.png")
    entries = [
        _Entry(p.position, {"file": _file(p, name), "caption": p.title, "row": str(p.position), "column": name})
        for p in own
        for name in p.pictures
    ]
    return [entry.fields for entry in gathered(data_ranks, entries)]


@dataclass(frozen=True)
class _Entry:
    position: int
    fields: dict[str, str]


def _file(panel: Panel, name: str) -> str:
    return f"{panel.position:04d}-{name.replace(' ', '-')}.png"


def contact_sheet(panels: Sequence[Panel]) -> Image.Image:
    """One picture of all panels: per line a title and its pictures, under the names of the columns."""
    columns = list(panels[0].pictures)
    font = ImageFont.load_default(13)
    line = CELL + GAP
    sheet = Image.new("RGB", (TEXT_WIDTH + line * len(columns) + GAP, 28 + line * len(panels)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(columns):
        draw.text((TEXT_WIDTH + column * line, 8), name, fill="#1f2933", font=font)
    for row, panel in enumerate(panels):
        top = 28 + row * line
        draw.multiline_text((GAP, top), textwrap.fill(panel.title, 36), fill="#1f2933", font=font)
        for column, name in enumerate(columns):
            cell = as_image(panel.pictures[name]).resize((CELL, CELL), Image.Resampling.NEAREST)
            sheet.paste(cell, (TEXT_WIDTH + column * line, top))
    return sheet
