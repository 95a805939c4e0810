"""Pictures of an attack for the report: source, redrawn, adversarial and their difference, with the learner's answers."""

from __future__ import annotations

import torch
from torch import Tensor

from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.unigame.attack import Attack
from megaunigame.objectives.unigame.paths import AttackPath, AttackResult
from megaunigame.pixels import Panel, to_bytes
from megaunigame.step.inputs import IGNORE, UnderstandInputs

TITLE = "Attacked pictures"
GAIN = 10
"""The difference is shown ten times as strong, around gray."""


@torch.no_grad()
def attack_panels(
    model: UnifiedModel, path: AttackPath, attack: Attack, attacked: AttackResult, pictures: Tensor
) -> list[Panel]:
    """One line per real row, for `pictures` (B, 3, H, W) in [-1, 1]. The same model calls on every rank."""
    plain = path.unperturbed(model, attack, attacked)
    before = _answers(model, attack.question)
    after = _answers(model, attacked.question)
    return [
        Panel(
            title=TITLE,
            pictures={
                "source": to_bytes(attack.redraw.targets[row]),
                "decoded": to_bytes(plain[row]),
                "adversarial": to_bytes(pictures[row]),
                f"difference x {GAIN}": to_bytes((pictures[row] - plain[row]) * GAIN / 2),
            },
            texts={
                "question": attack.question.texts[row][0],
                "answer": attack.question.texts[row][1],
                "prediction before": before[row],
                "prediction after": after[row],
            },
        )
        for row in range(len(pictures))
        if attack.question.counts[row] > 0
    ]


def _answers(model: UnifiedModel, question: UnderstandInputs) -> list[str]:
    """The greedy answer to the first question of every row, given the reference before each token."""
    predictions = model.predict(question)
    texts = []
    for labels, predicted in zip(question.labels, predictions, strict=True):
        asked = (labels != IGNORE).nonzero().squeeze(1)
        offset = asked - torch.arange(len(asked), device=asked.device)  # constant while positions are consecutive
        texts.append(model.processor.text(predicted[asked[offset == offset[:1]]].tolist()))
    return texts
