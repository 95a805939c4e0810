"""Teacher-forced losses on held-out shards, and how much the model uses its condition.

    gap = loss given another sample's condition - loss given the right condition   (nats per position)

A gap near 0 means that the condition is ignored: a caption loss can look healthy while the text has no influence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megaunigame.data.conversation import caption_of
from megaunigame.data.decode import Sample
from megaunigame.evaluation.asking import questions_of
from megaunigame.evaluation.lockstep import Item, batches, read_others, read_share, together
from megaunigame.evaluation.suites.base import Suite, SuiteConfig, suite_result, table
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.ranks import Ranks
from megaunigame.settings import at_least, one_of
from megaunigame.step.inputs import GenerateInputs, PassInputs, UnderstandInputs
from megaunigame.step.rows import GenerateRow, Row, UnderstandRow

ANSWERS, CAPTION, PIXEL = "answers", "caption", "pixel"
TERMS: dict[str, type[PassInputs]] = {ANSWERS: UnderstandInputs, CAPTION: GenerateInputs, PIXEL: GenerateInputs}
Share = list[tuple[int, Sample]]
"""Samples of a rank, with their positions."""


class TeacherForced(Suite):
    """Mean loss of answers, caption -> picture and picture -> same picture, given the right and another condition."""

    @dataclass
    class Config(SuiteConfig):
        limit: int = at_least(0, 256)
        terms: list[str] = one_of(TERMS, lambda: [ANSWERS, CAPTION])
        """`answers` (condition: the image), `caption` (the text), `pixel` (the source image)."""
        prompt: str = "draw this image again ."
        """Prompt of the `pixel` term."""

    def needs_mask(self) -> str:
        return f"terms=[{','.join(self.config.terms)}]" if ANSWERS in self.config.terms else ""  # its questions are independent

    def run(self, model: UnifiedModel, data_ranks: Ranks, folder: Path) -> dict[str, Any]:
        limit = self.config.limit
        share = read_share(self.index, limit, data_ranks, self.rules)
        others = read_others(self.index, limit, data_ranks, self.rules)
        metrics: dict[str, float] = {}
        rows: list[list[str | int | float | None]] = []
        for term in self.config.terms:
            right, positions = self._mean_loss(model, data_ranks, term, share, share)
            other, _ = self._mean_loss(model, data_ranks, term, share, others)
            if positions == 0:
                rows.append([term, 0, None, None, None])
                continue
            metrics |= {f"{term}/loss": right, f"{term}/loss_other_condition": other, f"{term}/gap": other - right}
            rows.append([term, positions, round(right, 4), round(other, 4), round(other - right, 4)])
        columns = ["term", "positions", "loss", "loss, other sample's condition", "gap"]
        return suite_result(metrics, [table("Teacher-forced loss (nats per position)", columns, rows)])

    def _mean_loss(
        self, model: UnifiedModel, data_ranks: Ranks, term: str, share: Share, conditions: Share
    ) -> tuple[float, int]:
        """(mean loss per position, positions) over all ranks."""
        pairs = [(p, sample, condition) for (p, sample), (_, condition) in zip(share, conditions, strict=True)]
        built = together(data_ranks, lambda: [(p, s.key, self._row(term, s, c)) for p, s, c in pairs])
        items = [Item(position, key, row) for position, key, row in built if row is not None]
        totals = torch.zeros(2, dtype=torch.float64)
        for _, inputs in batches(model, data_ranks, items, TERMS[term], self.config.batch, takes_source=term == PIXEL):
            loss_sum = model(inputs.to(data_ranks.device)).loss_sum
            totals += torch.stack([loss_sum.double().sum().cpu(), inputs.counts.double().sum()])
        loss, positions = data_ranks.all_reduce_sum(totals.to(data_ranks.device)).tolist()
        return (loss / positions, int(positions)) if positions else (float("nan"), 0)

    def _row(self, term: str, sample: Sample, condition: Sample) -> Row | None:
        """The row of a sample under a condition, or None when either lacks what the term needs."""
        if sample.image is None or condition.image is None:
            return None
        if term == ANSWERS:
            return UnderstandRow(condition.images, [(q.text, q.reference) for q in questions_of(sample, ())], independent=True)
        if term == PIXEL:
            return GenerateRow(self.config.prompt, sample.image, condition.image)
        caption = caption_of(condition)
        return None if caption is None or caption_of(sample) is None else GenerateRow(caption, sample.image)
