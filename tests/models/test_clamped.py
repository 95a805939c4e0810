"""Pixels of a decoded picture are clamped; an attack still gets a gradient there."""

from __future__ import annotations

import torch

from megaunigame.models.base import clamped


def test_values_are_clamped_and_the_gradient_passes_where_they_are():
    pixels = torch.tensor([-3.0, -1.0, 0.25, 1.0, 7.0], requires_grad=True)
    shown = clamped(pixels)
    assert shown.tolist() == [-1.0, -1.0, 0.25, 1.0, 1.0]
    (gradient,) = torch.autograd.grad((shown * torch.arange(1.0, 6.0)).sum(), pixels)
    assert gradient.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
