"""An overview picture of a data set: image, depth and segments of a few samples in columns, with their text."""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from megaunigame.data.decode import CONTOURS, DEPTH, IMAGE, SEGMENTATION, Sample
from megaunigame.pixels import as_image

from .inputs.conversation import MARKER

CELL = 192
"""Pixels per side of a picture on the sheet."""
TEXT_WIDTH = 384
GAP = 8
GOLDEN_RATIO = 0.618034


def contact_sheet(samples: Sequence[Sample]) -> Image.Image:
    """One row per sample: image, then depth (near is white), segmentation (a color per id, 0 black) and contours if any
    has them.

    What a sample lacks stays gray; its key, caption and questions are at the right.
    """
    columns = [IMAGE, *(name for name in (DEPTH, SEGMENTATION, CONTOURS) if any(s.picture(name) is not None for s in samples))]
    width = len(columns) * (CELL + GAP) + GAP + TEXT_WIDTH
    sheet = Image.new("RGB", (width, len(samples) * (CELL + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, sample in enumerate(samples):
        top = GAP + row * (CELL + GAP)
        for column, name in enumerate(columns):
            left = GAP + column * (CELL + GAP)
            draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill=(225, 225, 225))
            picture = _rendered(sample, name)
            if picture is not None:
                method = Image.Resampling.NEAREST if name == SEGMENTATION else Image.Resampling.BICUBIC
                picture = ImageOps.contain(picture, (CELL, CELL), method)
                sheet.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))
        words = "\n".join(line for text in _texts(sample) for line in textwrap.wrap(text, 58)[:4])
        draw.multiline_text((width - TEXT_WIDTH, top), "\n".join(words.splitlines()[:12]), fill="black", font=font)
    return sheet


def id_colors() -> np.ndarray:
    """(256, 3) uint8: black for 0, then hues a golden angle apart, so that neighboring ids differ."""
    colors = [colorsys.hsv_to_rgb(k * GOLDEN_RATIO % 1, 0.75, 1 - 0.4 * (k % 3) / 2) for k in range(255)]
    return np.concatenate([np.zeros((1, 3)), np.round(255 * np.array(colors))]).astype(np.uint8)


def _rendered(sample: Sample, name: str) -> Image.Image | None:
    pixels = sample.picture(name)
    if pixels is None:
        return None
    if name == IMAGE:
        return as_image(pixels)
    if name == DEPTH:
        return Image.fromarray((pixels.numpy() >> 8).astype(np.uint8))
    return Image.fromarray(pixels.numpy() if name == CONTOURS else id_colors()[pixels.numpy()])


def _texts(sample: Sample) -> list[str]:
    """The key, the caption, and questions with their answers."""
    meta = sample.meta
    texts = [sample.key]
    if "caption" in meta:
        texts.append(meta["caption"])
    if "conversations" in meta:
        said = [turn["value"].replace(MARKER, "").strip() for turn in meta["conversations"] if turn["from"] != "system"]
        texts += [f"{question} - {answer}" for question, answer in zip(said[0::2], said[1::2], strict=True)]
    if "questions" in meta:
        texts += meta["questions"]
    return texts
