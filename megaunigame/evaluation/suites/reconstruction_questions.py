"""Questions about reconstructed images: does the model understand what it generates itself?

The same questions are asked about four pictures: the real image, its copy through the image tokenizer (the ceiling of
any generated picture), the model's own image-conditioned reconstruction, and the real image of another sample. The last
is the control: an accuracy that an unrelated image also reaches is not evidence of seeing anything.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaunigame.data.decode import Sample
from megaunigame.errors import DataError
from megaunigame.evaluation.asking import Sheet, ask, questions_of
from megaunigame.evaluation.lockstep import Item, batches, gathered, read_others, read_share, together
from megaunigame.evaluation.metrics import Answer, accuracy, by_kind, chance, majority
from megaunigame.evaluation.pictures import write_panels
from megaunigame.evaluation.suites.base import AskingConfig, Cell, DrawingConfig, Suite, percent, suite_result, table
from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.ranks import Ranks
from megaunigame.pixels import Panel, to_bytes
from megaunigame.step.inputs import GenerateInputs
from megaunigame.step.requests import FIT
from megaunigame.step.rows import GenerateRow

REAL, TOKENIZER, OWN, UNRELATED = "real", "through tokenizer", "own reconstruction", "unrelated image"


@dataclass(frozen=True)
class _ImageSample:
    """A sample with an image."""

    position: int
    sample: Sample
    image: Tensor


class ReconstructionQuestions(Suite):
    """Questions on the real image, the tokenizer's copy, the model's own reconstruction, and an unrelated image."""

    @dataclass
    class Config(AskingConfig, DrawingConfig):
        prompt: str = "draw this image again ."
        """Prompt of the reconstruction, in the wording of the training."""

    def run(self, model: UnifiedModel, data_ranks: Ranks, folder: Path) -> dict[str, Any]:
        c = self.config
        share = [
            _ImageSample(p, s, s.image)
            for p, s in read_share(self.index, c.limit, data_ranks, self.rules)
            if s.image is not None
        ]
        others = dict(read_others(self.index, c.limit, data_ranks, self.rules))
        if not any(data_ranks.all_gather_object(len(share))):
            raise DataError(f"No images in the first samples of {c.shards}; reconstruction questions need some.")
        questions = together(data_ranks, lambda: [questions_of(seen.sample, c.skip_kinds) for seen in share])
        copies = self._reconstruct(model, data_ranks, share)
        pictures: dict[str, list[Tensor | None]] = {
            REAL: [seen.image for seen in share],
            TOKENIZER: [through for through, _ in copies],
            OWN: [own for _, own in copies],
            UNRELATED: [others[seen.position].image for seen in share],
        }
        answers: dict[str, list[Answer]] = {}
        for name, images in pictures.items():
            sheets = [
                Sheet(seen.position, seen.sample, image, asked)
                for seen, image, asked in zip(share, images, questions, strict=True)
            ]
            own = ask(model, data_ranks, sheets, batch=c.batch, per_row=c.questions_per_row)
            answers[name] = gathered(data_ranks, own)

        metrics = {f"accuracy/{name}".replace(" ", "_"): _mean_accuracy(a) for name, a in answers.items()}
        metrics["own_minus_tokenizer"] = _mean_accuracy(answers[OWN]) - _mean_accuracy(answers[TOKENIZER])
        panels = [
            Panel(seen.sample.key, {REAL: seen.image, TOKENIZER: copy, OWN: own}, position=seen.position)
            for seen, (copy, own) in zip(share, copies, strict=True)
            if seen.position < c.pictures
        ]
        return suite_result(metrics, [_table(answers)], write_panels(panels, data_ranks, folder))

    def _reconstruct(
        self, model: UnifiedModel, data_ranks: Ranks, share: Sequence[_ImageSample]
    ) -> list[tuple[Tensor, Tensor]]:
        """Per sample: the copy through the tokenizer and the model's own reconstruction, uint8 (3, H, W)."""
        c = self.config
        generator = torch.Generator(data_ranks.device).manual_seed(c.seed + data_ranks.rank)
        copies: list[tuple[Tensor, Tensor]] = []
        items = [Item(s.position, s.sample.key, GenerateRow(c.prompt, s.image, s.image)) for s in share]
        # Whole pictures, as the questions are about: with their edges cut off, an answer could be missing.
        for present, inputs in batches(model, data_ranks, items, GenerateInputs, c.batch, takes_source=True, geometry=FIT):
            inputs = inputs.to(data_ranks.device)
            through = to_bytes(model.decode_target(model.encode_target(inputs.targets)))
            own = to_bytes(model.sample(inputs, guidance=c.guidance, temperature=c.temperature, generator=generator))
            copies += [(through[i], own[i]) for i in range(len(present))]
        return copies


def _mean_accuracy(answers: Sequence[Answer]) -> float:
    """Mean over the kinds, so that a frequent kind does not drown the others."""
    return statistics.fmean(accuracy(group) for group in by_kind(answers).values())


def _table(answers: dict[str, list[Answer]]) -> dict[str, Any]:
    groups = {name: by_kind(a) for name, a in answers.items()}
    rows: list[list[Cell]] = []
    totals: list[list[float]] = []
    for kind, real in groups[REAL].items():
        shares = [*(accuracy(groups[name][kind]) for name in answers), chance(real), majority(real)]
        totals.append(shares)
        rows.append([kind, len(real), *map(percent, shares)])
    means = [statistics.fmean(column) for column in zip(*totals, strict=True)]
    rows.append(["mean of kinds", len(answers[REAL]), *map(percent, means)])
    columns = ["kind", "questions", *(f"{name} (%)" for name in answers), "chance (%)", "majority (%)"]
    return table("Accuracy by picture asked about", columns, rows)
