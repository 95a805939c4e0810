"""Captioning: say what is in the picture; the loss is that of the answer's tokens."""

from dataclasses import dataclass

from megaunigame.data.conversation import caption_of
from megaunigame.objectives.base import Objective
from megaunigame.settings import at_least
from megaunigame.step.requests import UNDERSTAND, RowRequest
from megaunigame.step.rows import UnderstandRow


class Captioning(Objective):
    @dataclass
    class Config:
        rows: int = at_least(0, 3)
        """Rows per micro-step and rank."""
        stream: str = "train"

    def rows(self):
        return [RowRequest("captioning", UNDERSTAND, self.config.stream, self.config.rows)]

    def row(self, request, sample, rng):
        caption = caption_of(sample)
        return None if sample.image is None or caption is None else UnderstandRow([sample.image], [("describe", caption)])
