"""UniMRG: understanding, and generation of several representations of the same kind of input (arXiv 2601.21406).

    L = w_u * CE(f(h, question), answer) + sum over representations r of w_r * L_image(f(h, prompt_r), picture_r)

h: visual tokens of the input image on the understanding path; L_image: the family's own image loss, whose gradient reaches
the understanding path. All weights are 1 in the release. Pixel rows alone are RecA (arXiv 2509.07295).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from megaunigame.data.decode import SEGMENTATION, SEGMENTATION_FIELD, Sample
from megaunigame.errors import ConfigError, DataError
from megaunigame.objectives.base import Objective
from megaunigame.objectives.understanding import ASKED, Understanding
from megaunigame.objectives.unimrg.condition import soften
from megaunigame.objectives.unimrg.prompts import prompts_of
from megaunigame.objectives.unimrg.settings import ALL, PIXEL, UNDERSTANDING, Settings
from megaunigame.registry import find
from megaunigame.representations.base import ANNOTATE, Representation
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest
from megaunigame.step.rotation import Rotation
from megaunigame.step.rows import GenerateRow, Row


class UniMRG(Objective):
    """One term per task, all through the same two passes."""

    Config = Settings

    def __init__(self, config: Settings):
        super().__init__(config)
        self.questions = Understanding(
            Understanding.Config(stream=config.stream, turns=config.turns, independent=config.independent)
        )
        drawn = [task for task in config.tasks if task != UNDERSTANDING]
        self.prompts = {task: prompts_of(task, config.prompts, config.own_prompts) for task in drawn}
        self.representations = {
            task: find("representations", task, Representation)(config.renderings.get(task, "")) for task in drawn
        }

    def rows(self) -> list[RowRequest]:
        c = self.config
        return [
            RowRequest(
                task,
                UNDERSTAND if task == UNDERSTANDING else GENERATE,
                c.stream,
                c.rows[task],
                c.weights.get(task, 1.0),
                takes_source=True,
                shares=c.paired[0] if task in c.paired[1:] else None,
                target_is_source=task == PIXEL,
                geometry="" if task == UNDERSTANDING else c.geometry,
                needs=ASKED if task == UNDERSTANDING else "a picture",
                turns=c.turns if task == UNDERSTANDING else 0,
            )
            for task in c.tasks
        ]

    def redraws(self) -> dict[str, tuple[str, str]]:
        return {task: (wordings[0], self.config.geometry) for task, wordings in self.prompts.items()}

    def rotation(self) -> Rotation | None:
        return None if self.config.schedule == ALL else Rotation(self.config.tasks, self.config.schedule)

    def row(self, request: RowRequest, sample: Sample, rng: np.random.Generator) -> Row | None:
        c, task = self.config, request.term
        if task == UNDERSTANDING:
            return self.questions.row(request, sample, rng)
        # Draw both numbers for every row, so that the random stream does not depend on the kind of row.
        dropped, prompt = rng.random() < c.drop, self.prompts[task][int(rng.integers(len(self.prompts[task])))]
        if sample.image is None:
            return None  # a text-only conversation is not an error
        target = self.representations[task].picture(sample)
        if target is None:
            needed = self.representations[task]
            raise self._lacking(sample, f"{needed.needs}, which {task} rows need", needed.remedy)
        if task != PIXEL:
            emphasis = self._emphasis(sample, task)
            shown = sample.codes_of(sample.image)
            return GenerateRow(
                prompt, target, sample.image, source_gradient=c.source_gradient, emphasis=emphasis, source_codes=shown
            )
        source = soften(sample.image, c.source_downscale, c.source_blur)
        own: dict[str, Any] = {"target_codes": sample.codes_of(target), "source_codes": sample.codes_of(source)}
        return GenerateRow(prompt, target, source, dropped, c.source_gradient, **own)

    def _emphasis(self, sample: Sample, task: str) -> tuple[Tensor, float] | None:
        """Where the objects are, and their weight."""
        if self.config.object_weight == 1:
            return None
        ids = sample.picture(SEGMENTATION)
        if ids is None:
            what = f"{SEGMENTATION_FIELD}, which {task} rows need for object_weight={self.config.object_weight:g}"
            raise self._lacking(sample, what, ANNOTATE)
        return ids > 0, self.config.object_weight

    def _lacking(self, sample: Sample, what: str, remedy: str) -> DataError | ConfigError:
        problem = f"Sample {sample.key} has no {what}. {remedy}"
        if self.config.missing == "error":
            return ConfigError(f"{problem}, or type objectives.unimrg.missing=substitute to use other samples instead.")
        return DataError(f"{problem}.")
