"""The rows of one attack."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from megaunigame.step.inputs import GenerateInputs, UnderstandInputs, of_kind, take_rows
from megaunigame.step.micro import MicroStep
from megaunigame.step.requests import GENERATE

ATTACK, REDRAW = "attack", "redraw"
"""Terms of the rows aside: questions about the attacked pictures, and the requests that redraw the pictures."""


@dataclass
class Attack:
    """Row b of both parts is the same sample."""

    redraw: GenerateInputs
    """As for the generate pass; its targets are the source pictures."""
    question: UnderstandInputs
    """As for the understand pass, about the source pictures."""
    texts: list[str] = dataclasses.field(default_factory=list)
    """The caption of each picture, or its question."""

    def to(self, device: torch.device) -> Attack:
        return dataclasses.replace(self, redraw=self.redraw.to(device), question=self.question.to(device))


def question_of(micro: MicroStep) -> UnderstandInputs:
    """The questions that the loader made aside."""
    return of_kind(UnderstandInputs, micro.aside[ATTACK])


def attack_of(micro: MicroStep, redrawn_by: str | None, *, captioned: bool, at: slice | None = None) -> Attack:
    """The attack of a micro-step. `redrawn_by`: the learner's generate term, at `at`, that redraws the sources; None: aside.

    `captioned`: the text of a picture is the caption it was drawn from; else its question.
    """
    question = question_of(micro)
    if redrawn_by is None:
        redraw = of_kind(GenerateInputs, micro.aside[REDRAW])
    else:
        redraw = take_rows(micro.generate, at or micro.plan.rows_at(GENERATE, redrawn_by))
    return Attack(redraw, question, [text for text, _ in (redraw if captioned else question).texts])
