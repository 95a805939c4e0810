"""Pictures: as the model generates them, as bytes, as images, side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SMALLEST_MSE = 1e-10
"""Floor of the mean squared error: 106 dB means "equal"."""


@dataclass
class Panel:
    """Pictures side by side, on one line of a report."""

    title: str
    """Heading above all lines with this title, or the caption of one line."""
    pictures: dict[str, Tensor]
    """Name -> uint8 (3, H, W)."""
    texts: dict[str, str] = field(default_factory=dict)
    """Name -> text shown next to the pictures."""
    position: int = 0
    """Position of the sample, to sort lines by."""


def quantized(pixels: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1] -> uint8 on the same device, without gradient."""
    return ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_bytes(pixels: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1] -> uint8 on the CPU, without gradient."""
    return quantized(pixels).cpu()


def as_image(picture: Tensor) -> Image.Image:
    """uint8 (3, H, W) on the CPU -> an RGB Pillow image."""
    return Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))


def psnr(pictures: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of (B, ...) pictures in [-1, 1], per picture: (B,) in dB.

    10 log10(4 / MSE), since the range of the values is 2.
    """
    mse = (pictures.float() - targets.float()).square().flatten(1).mean(1).clamp_min(SMALLEST_MSE)
    return 10 * torch.log10(4 / mse)
