"""UniGame (arXiv 2511.19413): a game between the learner and an adversary at its visual tokens.

    min over theta (learner), max over phi (adversary):  L_clean(theta) + beta * L_hard(theta; buffer filled by phi)

Each step the adversary perturbs the visual tokens of some source pictures and ascends the learner's loss on the result:
gain * CE - penalties. Plausible results (CLIP) are candidates for the hard buffer, which keeps those at or above a percentile
of all ranks' losses; the learner trains on clean rows and on rows replayed from it.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import torch

from megaunigame.adversary.base import Adversary
from megaunigame.data.conversation import caption_of
from megaunigame.data.decode import Sample
from megaunigame.errors import ConfigError
from megaunigame.judges.clip_filter import ClipFilter
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.base import Objective
from megaunigame.objectives.player import Context
from megaunigame.objectives.understanding import Understanding
from megaunigame.objectives.unigame.alternating import Alternating
from megaunigame.objectives.unigame.attack import ATTACK, REDRAW
from megaunigame.objectives.unigame.game import ADVERSARIAL, HARD, PENALTY, Game
from megaunigame.objectives.unigame.paths import lacks
from megaunigame.objectives.unigame.redraw import check_redraw
from megaunigame.objectives.unigame.settings import OWN, Settings
from megaunigame.objectives.unigame.simultaneous import Simultaneous
from megaunigame.registry import available, find
from megaunigame.representations.base import Representation
from megaunigame.settings import fill
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, StepPlan
from megaunigame.step.rows import GenerateRow, Row

log = logging.getLogger(__name__)

CLEAN = "clean"


class UniGame(Objective):
    """Clean rows, rows replayed from the hard buffer, and rows aside for the adversary that fills it."""

    Config = Settings

    def __init__(self, config: Settings):
        super().__init__(config)
        self.attacks = config.attack_rows > 0
        """False: fine-tuning on the clean rows only."""
        self.redrawn_by = config.redraw if self.attacks and config.redraw != OWN else None
        """The learner's generate term whose rows redraw the sources; None: rows aside do."""
        asked = Understanding.Config(config.clean_rows, config.stream, turns=config.turns, independent=config.independent)
        attacked = config.turns if config.attack_turns is None else config.attack_turns
        self.questions = {CLEAN: Understanding(asked), ATTACK: Understanding(dataclasses.replace(asked, turns=attacked))}
        self.pixel: Representation = find("representations", "pixel", Representation)()
        settings = dict(config.adversary)
        self.kind = find("adversary", settings.pop("kind"), Adversary)
        self.adversary_config = fill(self.kind.Config, settings, "objectives.unigame.adversary")
        # Loaded before the model, so that wrong settings fail early.
        self.clip = ClipFilter(config.clip, torch.device("cpu")) if self.attacks and config.clip else None

    @classmethod
    def planned(cls, config: Settings) -> UniGame:
        """Without loading CLIP, whose bytes are still counted."""
        objective = cls(dataclasses.replace(config, clip=None))
        objective.config = config
        return objective

    def rows(self) -> list[RowRequest]:
        c = self.config
        asked = [
            RowRequest(CLEAN, UNDERSTAND, c.stream, c.clean_rows, 1.0, takes_source=True, turns=c.turns),
            RowRequest(HARD, UNDERSTAND, None, c.hard_rows, c.beta, takes_source=True),
        ]
        if self.attacks and c.mode == "simultaneous":
            asked.append(RowRequest(ADVERSARIAL, UNDERSTAND, None, c.attack_rows, c.beta, takes_source=True))
        aside: dict[str, Any] = {"geometry": c.geometry, "aside": True}
        if self.redrawn_by is None:
            source = c.condition == "image"
            own = CLEAN if c.attack_on == "clean" else None
            asked.append(RowRequest(REDRAW, GENERATE, c.stream, c.attack_rows, takes_source=source, shares=own, **aside))
        shares = self.redrawn_by or REDRAW
        asked.append(RowRequest(ATTACK, UNDERSTAND, c.stream, c.attack_rows, takes_source=True, shares=shares, **aside))
        return asked

    def row(self, request: RowRequest, sample: Sample, rng: np.random.Generator) -> Row | None:
        if request.term == REDRAW:
            return self._redraw(sample, rng)
        if request.term == ATTACK and sample.image_count > 1:
            return None  # one picture is redrawn; a question about several is about the others too
        return self.questions[request.term].row(request, sample, rng)

    def _redraw(self, sample: Sample, rng: np.random.Generator) -> Row | None:
        """The request that redraws the picture of a sample."""
        picture = self.pixel.picture(sample)
        if picture is None:
            return None
        if self.config.condition == "image":
            prompt = self.config.prompts[int(rng.integers(len(self.config.prompts)))]
            own: dict[str, Any] = {"target_codes": sample.codes_of(picture), "source_codes": sample.codes_of(sample.image)}
            return GenerateRow(prompt, picture, sample.image, **own)
        caption = caption_of(sample)
        return None if caption is None else GenerateRow(caption, picture, target_codes=sample.codes_of(picture))

    def check_plan(self, plan: StepPlan) -> None:
        if self.redrawn_by is not None:
            check_redraw(self.config, plan)

    def check_family(self, family: type[UnifiedModel], name: str, folder: str, plan: StepPlan) -> None:
        path = self.config.path
        if self.attacks and (lacking := lacks(family, path)):
            able = [n for n in available("models", UnifiedModel) if not lacks(find("models", n, UnifiedModel), path)]
            raise ConfigError(
                f"The family {name!r} has no {lacking}, which path={path} needs. Families that have one: {', '.join(able)}. "
                "Or type objectives.unigame.path=embedding."
            )
        redraw = self.config.redraw
        if self.attacks and path == "decoder" and redraw != OWN and not family.predicts_whole:
            raise ConfigError(
                f"objectives.unigame.redraw={redraw}: in its own pass the family {name!r} reads a part of the picture and "
                "predicts the rest, so not all of its hidden states draw. Type objectives.unigame.redraw=own."
            )
        if self.attacks and self.config.controller is not None and not family.has_codes:
            able = [n for n in available("models", UnifiedModel) if find("models", n, UnifiedModel).has_codes]
            raise ConfigError(
                f"The family {name!r} draws no codes, and objectives.unigame.controller counts those that an attack flips. "
                f"Families with codes: {', '.join(able)}. Or type objectives.unigame.controller=null, and give "
                "objectives.unigame.adversary.eps_max."
            )

    def added_terms(self, plan: StepPlan) -> list[str]:
        return [PENALTY] if self.attacks and self.config.mode == "simultaneous" else []

    def player(self, context: Context) -> Game | None:
        if not self.attacks:
            return None
        if (filled := self.config.most_filled) < 1 and context.data_ranks.is_main:
            log.warning(
                "objectives.unigame.hard_rows=%d: replayed pictures leave the buffer, and so few enter that at most %.0f %% of "
                "these rows can be filled; the others stay empty. Lower hard_rows or buffer.percentile, raise attack_rows, or "
                "type objectives.unigame.buffer.draw=keep.",
                self.config.hard_rows,
                100 * filled,
            )
        mode = Simultaneous if self.config.mode == "simultaneous" else Alternating
        return mode(self.config, self.redrawn_by, self.kind, self.adversary_config, self.clip, context)
