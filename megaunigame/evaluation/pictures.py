"""Pictures of an evaluation: as files, as one contact sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL, TEXT_WIDTH, GAP = 160, 260, 10


def save_png(picture: Tensor, path: Path) -> None:
    """Write a uint8 (3, h, w) picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    as_image(picture).save(path)


def as_image(picture: Tensor) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))


def contact_sheet(rows: Sequence[tuple[str, Mapping[str, Tensor]]]) -> Image.Image:
    """One picture of many: per row a caption and its pictures (uint8 (3, h, w)), names of the columns above."""
    columns = list(rows[0][1])
    font = ImageFont.load_default(13)
    line = CELL + GAP
    sheet = Image.new("RGB", (TEXT_WIDTH + line * len(columns) + GAP, 28 + line * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(columns):
        draw.text((TEXT_WIDTH + column * line, 8), name, fill="#1f2933", font=font)
    for row, (caption, pictures) in enumerate(rows):
        top = 28 + row * line
        draw.multiline_text((GAP, top), textwrap.fill(caption, 36), fill="#1f2933", font=font)
        for column, name in enumerate(columns):
            cell = as_image(pictures[name]).resize((CELL, CELL), Image.Resampling.NEAREST)
            sheet.paste(cell, (TEXT_WIDTH + column * line, top))
    return sheet
