"""Understanding: next-token prediction of the answers about an image (visual instruction tuning, arXiv 2304.08485).

loss = - sum over answer tokens log p(token | images, earlier text) / number of answer tokens on all ranks
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megaunigame.data.conversation import conversation_of
from megaunigame.data.decode import Sample
from megaunigame.objectives.base import Objective
from megaunigame.settings import at_least
from megaunigame.step.requests import UNDERSTAND, RowRequest
from megaunigame.step.rows import UnderstandRow

ASKED = "`conversations` of questions and answers"


class Understanding(Objective):
    """Rows = images and conversation; text-only conversations are legal."""

    @dataclass
    class Config:
        rows: int = at_least(0, 4)
        """Rows per micro-step and rank."""
        stream: str = "train"
        """Name of the stream in `data`."""
        weight: float = 1.0
        """Weight of the loss."""
        turns: int = at_least(0, 0)
        """At most this many question-answer pairs of a conversation, drawn again each epoch; 0: all, in their order."""
        independent: bool = False
        """Every question sees the image and itself only; one image then serves many questions without leaking answers."""

    def rows(self) -> list[RowRequest]:
        c = self.config
        return [
            RowRequest("understanding", UNDERSTAND, c.stream, c.rows, c.weight, takes_source=True, needs=ASKED, turns=c.turns)
        ]

    def row(self, request: RowRequest, sample: Sample, rng: np.random.Generator) -> UnderstandRow:
        talk, apart = conversation_of(sample), self.config.independent
        chosen = np.arange(len(talk.pairs))
        if self.config.turns and len(talk.pairs) > self.config.turns:
            chosen = rng.choice(len(talk.pairs), self.config.turns, replace=False)
        turns = talk.asked((chosen if apart else np.sort(chosen)).tolist(), apart=apart)
        return UnderstandRow(sample.images, turns, apart, codes=sample.stored_codes)
