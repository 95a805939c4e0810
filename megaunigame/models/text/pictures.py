"""uint8 pictures of any size -> normalized square tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.step.levels import Levels
from megaunigame.step.requests import CROP, FIT, SQUASH

BACKGROUND = 127
"""Gray of the bars next to a picture that is not square."""


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 (3, h, w) -> uint8 (3, height, width), bicubic with antialiasing.

    In bytes and not in float32: that is how Pillow, and so every released processor, computes it, and several times faster.
    """
    if image.shape[1:] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode="bicubic", antialias=True, align_corners=False)[0]


def fit(image: Tensor, side: int, background: int = BACKGROUND) -> Tensor:
    """The whole picture inside a square: longer edge to `side`, padded with bars. uint8 (3, side, side)."""
    height, width = image.shape[1:]
    longer = max(height, width)
    image = _resize(image, max(1, height * side // longer), max(1, width * side // longer))
    height, width = image.shape[1:]
    top, left = (side - height) // 2, (side - width) // 2
    if (height, width) == (side, side):
        return image
    return F.pad(image, (left, side - width - left, top, side - height - top), value=background)


def crop(image: Tensor, side: int) -> Tensor:
    """The square in the middle of the picture, scaled to `side`. uint8 (3, side, side).

    Cut first: scaling the whole of a strip of 2 x 1,600 pixels would take gigabytes.
    """
    height, width = image.shape[1:]
    shorter = min(height, width)
    top, left = (height - shorter) // 2, (width - shorter) // 2
    return _resize(image[:, top : top + shorter, left : left + shorter], side, side)


def squash(image: Tensor, side: int) -> Tensor:
    """The whole picture, stretched to a square. uint8 (3, side, side)."""
    return _resize(image, side, side)


TO_SQUARE = {FIT: fit, SQUASH: squash, CROP: crop}
"""Geometry of a row -> the function that makes a square of a picture."""


def mask_to_square(mask: Tensor, side: int, geometry: str) -> Tensor:
    """bool (h, w) -> float32 (side, side): the covered share of each pixel, 0 in bars."""
    picture = (mask.to(torch.uint8) * 255).expand(3, *mask.shape)
    square = fit(picture, side, 0) if geometry == FIT else TO_SQUARE[geometry](picture, side)
    return square[0].float() / 255


class Normalize:
    """Values 0..255 (..., 3, h, w) -> float32: (value / 255 - mean) / std per channel, as one multiply and one add."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        self.scale = torch.tensor([1 / (255 * s) for s in std]).view(3, 1, 1)
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(3, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        scale, shift = (each.to(image.device, non_blocking=True) for each in (self.scale, self.shift))
        # Decoders return views of (h, w, 3) arrays; convolutions over such strides are several times slower.
        return torch.addcmul(shift, image.float(), scale).contiguous()

    def levels(self, given: Tensor) -> Levels:
        """The same for a batch of bytes: (B,) or (B, I) bool, where there is a picture."""
        return Levels(self.scale, self.shift, given)
