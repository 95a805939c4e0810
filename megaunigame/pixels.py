"""Pictures as the model draws them, and as bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def quantized(pixels: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1] -> uint8 where they are, without gradient."""
    return ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_bytes(pixels: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1] -> uint8 on the CPU, without gradient."""
    return quantized(pixels).cpu()
