"""What the learner says about the undisturbed pictures: the same questions, without a perturbation.

A picture can be hard because the image tokenizer or the redrawing lost what is asked about; its label is then wrong also
without a perturbation. The loss of the undisturbed picture, and whether it is answered right, tell such pictures apart.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megaunigame.models.base import UnifiedModel
from megaunigame.step.inputs import UnderstandInputs


class Undisturbed(NamedTuple):
    """Answers about the undisturbed pictures, without gradient."""

    losses: Tensor
    """(B,) float32 loss sums."""
    right: Tensor
    """(B,) bool: the likeliest token is the label at every loss position."""


def ask(model: UnifiedModel, question: UnderstandInputs) -> Undisturbed:
    """One understand pass about undisturbed pictures."""
    with torch.no_grad():
        output = model(question)
    return _noted(output.loss_sum, output.right)


def ask_both(model: UnifiedModel, attacked: UnderstandInputs, plain: UnderstandInputs) -> tuple[Tensor, Undisturbed]:
    """Both questions in one understand pass of twice the rows: loss sums (B,) of the attacked ones, and the other answers.

    They differ in their pictures and perturbations only.
    """
    rows = len(attacked.tokens)
    output = model(_stacked(attacked, plain))
    right = None if output.right is None else output.right[rows:]
    return output.loss_sum[:rows], _noted(output.loss_sum[rows:].detach(), right)


def _noted(losses: Tensor, right: Tensor | None) -> Undisturbed:
    if right is None:
        raise TypeError("The understand pass of this family does not fill UnderstandOutput.right.")
    return Undisturbed(losses, right)


def _stacked(attacked: UnderstandInputs, plain: UnderstandInputs) -> UnderstandInputs:
    """2B rows: those of `attacked`, which alone have a gradient, then those of `plain`."""
    delta = attacked.visual_delta
    twice: dict[str, Any] = {"visual_delta": None if delta is None else torch.cat([delta, torch.zeros_like(delta)])}
    for name, value in vars(attacked).items():
        if name in twice:
            continue
        if isinstance(value, Tensor):
            twice[name] = torch.cat([value, getattr(plain, name)])
        elif isinstance(value, list):
            twice[name] = value + getattr(plain, name)
    return dataclasses.replace(attacked, **twice, gradient_rows=slice(0, len(attacked.tokens)))
