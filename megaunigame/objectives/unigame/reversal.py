"""Gradient reversal layer (arXiv 1409.7495): in one backward pass the adversary receives the learner's gradient negated."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from megaunigame.step.inputs import UnderstandInputs


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.factor * gradient, None


def reverse_gradient(question: UnderstandInputs, factor: float) -> UnderstandInputs:
    """The same question; the gradient into its pictures and perturbation is multiplied by -factor."""
    delta = question.visual_delta
    return dataclasses.replace(
        question,
        images=_ReverseGradient.apply(question.images, factor),
        visual_delta=None if delta is None else _ReverseGradient.apply(delta, factor),
    )
