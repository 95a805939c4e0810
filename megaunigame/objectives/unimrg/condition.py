"""The source image of a pixel row, without detail that could be copied code by code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur


def soften(image: Tensor, downscale: float, blur: float) -> Tensor:
    """uint8 (3, h, w) -> uint8 (3, h, w): shrunk by `downscale` and enlarged again, then blurred by `blur` pixels."""
    if downscale > 1:
        height, width = image.shape[1:]
        small = (max(1, round(height / downscale)), max(1, round(width / downscale)))
        shrunk = F.interpolate(image[None].float(), small, mode="area")
        grown = F.interpolate(shrunk, (height, width), mode="bilinear", align_corners=False)
        image = grown[0].round().clamp(0, 255).to(torch.uint8)
    if blur > 0:
        reach = max(1, round(3 * blur))  # mirror padding must be smaller than the picture
        reach = min(reach, image.shape[1] - 1, image.shape[2] - 1)
        image = gaussian_blur(image, [2 * reach + 1, 2 * reach + 1], [blur, blur])
    return image
