"""How far a picture is from its target."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_MSE = 1e-10
"""Floor of the mean squared error: 106 dB stands for "equal"."""


def psnr(pictures: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of (B, 3, H, W) pictures in [-1, 1], per picture: (B,) in dB.

    10 log10(4 / MSE), since the range of the values is 2.
    """
    mse = (pictures.float() - targets.float()).square().flatten(1).mean(1).clamp_min(SMALLEST_MSE)
    return 10 * torch.log10(4 / mse)
