"""Losses of a generate row that weigh more where it matters."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def emphasized(losses: Tensor, emphasis: Tensor | None) -> Tensor:
    """Losses at the places of a picture, (B, N) in lines of a square or (B, C, h, w), times the weights of those places.

    `emphasis` (B, H, W), positive, by pixel; None: all alike. Its mean over each place is taken, and divided by the mean over
    the picture: the weights of a row have mean 1, so that its count of loss positions holds.
    """
    if emphasis is None:
        return losses
    places = losses
    if losses.dim() == 2:
        side = math.isqrt(losses.shape[1])
        places = losses.view(len(losses), 1, side, side)
    weights = F.adaptive_avg_pool2d(emphasis.unsqueeze(1), (places.shape[-2], places.shape[-1]))
    weights = weights / weights.mean((1, 2, 3), keepdim=True)
    return (places * weights).view(losses.shape)
