"""Generation: the family's own image loss on caption -> picture rows and image-conditioned pixel rows.

For a code-based family: loss = - sum over the N codes log p(code | condition, earlier codes) / number of codes on all ranks.
A pixel row shows the image to the understanding path, and its target is the same image (RecA, arXiv 2509.07295).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megaunigame.data.conversation import caption_of
from megaunigame.data.decode import Sample
from megaunigame.errors import ConfigError
from megaunigame.objectives.base import Objective
from megaunigame.registry import find
from megaunigame.representations.base import Representation
from megaunigame.settings import at_least, half_open, one_of
from megaunigame.step.requests import CROP, GENERATE, GEOMETRIES, RowRequest
from megaunigame.step.rows import GenerateRow, Row

CAPTION, PIXEL = "caption", "pixel"
CAPTIONED = "a picture and a `caption`"


class Generation(Objective):
    """Caption rows (text -> picture) and pixel rows (picture -> the same picture)."""

    @dataclass
    class Config:
        caption_rows: int = at_least(0, 4)
        """Rows per micro-step and rank that draw a picture from its caption."""
        pixel_rows: int = at_least(0, 0)
        """Rows per micro-step and rank that draw the picture they are shown."""
        stream: str = "train"
        """Name of the stream in `data`."""
        caption_weight: float = 1.0
        """Weight of the loss of the caption rows."""
        pixel_weight: float = 1.0
        """Weight of the loss of the pixel rows."""
        drop: float = half_open(0, 1, 0.1)
        """Probability that a row loses its condition, for classifier-free guidance."""
        pixel_prompts: list[str] = field(default_factory=lambda: ["draw this image again ."])
        """One is drawn per pixel row."""
        caption_geometry: str = one_of(GEOMETRIES, CROP)
        """How the pictures of caption rows become squares."""
        pixel_geometry: str = one_of(GEOMETRIES, CROP)
        """How the pictures of pixel rows become squares, source and target alike."""

        def check(self, path: str) -> None:
            if self.pixel_rows and not self.pixel_prompts:
                raise ConfigError(f"{path}.pixel_prompts is empty; give at least one prompt for the pixel rows.")

    def __init__(self, config: Config):
        super().__init__(config)
        self.pixel: Representation = find("representations", "pixel", Representation)()

    def rows(self) -> list[RowRequest]:
        c = self.config
        caption: dict[str, Any] = {"geometry": c.caption_geometry, "needs": CAPTIONED}
        pixel: dict[str, Any] = {"geometry": c.pixel_geometry, "needs": "a picture", "takes_source": True}
        return [
            RowRequest(CAPTION, GENERATE, c.stream, c.caption_rows, c.caption_weight, target_is_source=True, **caption),
            RowRequest(PIXEL, GENERATE, c.stream, c.pixel_rows, c.pixel_weight, target_is_source=True, **pixel),
        ]

    def redraws(self) -> dict[str, tuple[str, str]]:
        c = self.config
        return {PIXEL: (c.pixel_prompts[0], c.pixel_geometry)} if c.pixel_rows else {}

    def row(self, request: RowRequest, sample: Sample, rng: np.random.Generator) -> Row | None:
        target = self.pixel.picture(sample)
        # Draw both numbers for every row, so that the random stream does not depend on the kind of row.
        drop, prompt = rng.random() < self.config.drop, int(rng.integers(max(1, len(self.config.pixel_prompts))))
        if target is None:
            return None
        if request.term == PIXEL:
            own: dict[str, Any] = {"target_codes": sample.codes_of(target), "source_codes": sample.codes_of(sample.image)}
            return GenerateRow(self.config.pixel_prompts[prompt], target, sample.image, drop, **own)
        caption = caption_of(sample)
        return None if caption is None else GenerateRow(caption, target, None, drop, target_codes=sample.codes_of(target))
