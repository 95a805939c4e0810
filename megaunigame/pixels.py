"""Pictures: as the model draws them, as bytes, as images to look at, side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SMALLEST_MSE = 1e-10
"""Floor of the mean squared error: 106 dB stands for "equal"."""


@dataclass
class Panel:
    """Pictures that are shown side by side, on one line of a report."""

    title: str
    """What is shown: the heading above the lines that share it, or the caption of one line."""
    pictures: dict[str, Tensor]
    """Name -> uint8 (3, H, W)."""
    texts: dict[str, str] = field(default_factory=dict)
    """Name -> text shown next to the pictures."""
    position: int = 0
    """Place of the sample that the line is about, where lines are put in order."""


def quantized(pixels: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1] -> uint8 where they are, without gradient."""
    return ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_bytes(pixels: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1] -> uint8 on the CPU, without gradient."""
    return quantized(pixels).cpu()


def as_image(picture: Tensor) -> Image.Image:
    """uint8 (3, H, W) on the CPU -> an RGB image of Pillow."""
    return Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))


def psnr(pictures: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of (B, ...) pictures in [-1, 1], per picture: (B,) in dB.

    10 log10(4 / MSE), since the range of the values is 2.
    """
    mse = (pictures.float() - targets.float()).square().flatten(1).mean(1).clamp_min(SMALLEST_MSE)
    return 10 * torch.log10(4 / mse)
