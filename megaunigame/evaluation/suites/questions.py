"""Questions about held-out images: accuracy per kind with chance and majority, consistency over adversarial pairs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaunigame.errors import DataError
from megaunigame.evaluation.asking import Sheet, ask, questions_of
from megaunigame.evaluation.lockstep import gathered, gathered_to_main, read_share, together
from megaunigame.evaluation.metrics import Answer, kind_scores, pair_consistency, text_match
from megaunigame.evaluation.pictures import save_png
from megaunigame.evaluation.suites.base import AskingConfig, Cell, Suite, percent, suite_result, table
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.ranks import Ranks
from megaunigame.settings import at_least


class Questions(Suite):
    """Every question of every conversation, each asked alone about its image."""

    @dataclass
    class Config(AskingConfig):
        limit: int = at_least(0, 0)
        shown: int = 8
        """Images whose questions are listed in the report."""

    def run(self, model: UnifiedModel, data_ranks: Ranks, folder: Path) -> dict[str, Any]:
        c = self.config
        share = read_share(self.index, c.limit, data_ranks, self.rules)
        questions = together(data_ranks, lambda: [questions_of(s, c.skip_kinds) for _, s in share])
        sheets = [Sheet(p, s, s.image, asked) for (p, s), asked in zip(share, questions, strict=True)]
        answers = gathered(data_ranks, ask(model, data_ranks, sheets, batch=c.batch, per_row=c.questions_per_row))

        if not answers:
            raise DataError(f"No questions in the first samples of {c.shards}; look at limit and skip_kinds.")

        scores = kind_scores(answers)
        metrics = {f"accuracy/{s.kind}": s.accuracy for s in scores}
        metrics["accuracy/mean"] = statistics.fmean(s.accuracy for s in scores)
        metrics["text_match"] = statistics.fmean(text_match(a.predicted, a.reference) for a in answers)
        tables = [accuracy_table(answers)]
        pairs, consistent, guessed = pair_consistency(answers)
        if pairs:
            metrics["pair_consistency"] = consistent
            columns = ["question asked about both images", "pairs", "both right (%)", "chance (%)"]
            rows: list[list[Cell]] = [["all", pairs, percent(consistent), percent(guessed)]]
            tables.append(table("Consistency over adversarial pairs", columns, rows))
        return suite_result(metrics, tables, questions=self._shown(sheets, answers, data_ranks, folder))

    def _shown(
        self, sheets: Sequence[Sheet], answers: Sequence[Answer], data_ranks: Ranks, folder: Path
    ) -> list[dict[str, Any]]:
        """The questions of the first images, and the images as files."""
        own = [_ShownImage(s.position, s.image) for s in sheets if s.position < self.config.shown]
        for shown in gathered_to_main(data_ranks, own):
            if shown.image is not None:
                save_png(shown.image, folder / _file(shown.position))
        has_image = dict(
            pair for pairs in data_ranks.all_gather_object([(s.position, s.image is not None) for s in own]) for pair in pairs
        )
        return [
            {
                "image": _file(a.position) if has_image[a.position] else "",
                "question": a.question,
                "answer": a.reference,
                "predicted": a.predicted,
                "correct": a.correct,
            }
            for a in answers
            if a.position in has_image
        ]


@dataclass(frozen=True)
class _ShownImage:
    position: int
    image: Any


def _file(position: int) -> str:
    return f"asked-{position:04d}.png"


def accuracy_table(answers: Sequence[Answer]) -> dict[str, Any]:
    """Accuracy per kind of question, then the mean over the kinds."""
    scores = kind_scores(answers)
    shares = [(s.accuracy, s.chance, s.majority) for s in scores]
    rows: list[list[Cell]] = [[s.kind, s.n, *map(percent, row)] for s, row in zip(scores, shares, strict=True)]
    means = [statistics.fmean(column) for column in zip(*shares, strict=True)]
    rows.append(["mean of kinds", len(answers), *map(percent, means)])
    return table("Accuracy by kind of question", ["kind", "questions", "accuracy (%)", "chance (%)", "majority (%)"], rows)
