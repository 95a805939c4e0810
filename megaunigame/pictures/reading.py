"""From the bytes of a picture to its pixels: the one reader of pack, annotate, verify, training and evaluation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from megaunigame.pictures.header import header_of
from megaunigame.pictures.pillow import rgb_image
from megaunigame.pictures.rules import PictureError, PictureRules


def read_picture(data: bytes, rules: PictureRules) -> Tensor:
    """uint8 (3, H, W), RGB, as a viewer shows it: upright, its first frame, on the ground where it is transparent.

    The container is found by content. Raises PictureError for what cannot be decoded or is above the limit of pixels.
    """
    header = header_of(data)
    if header is None or not (header.plain and header.fast):
        return torch.from_numpy(np.array(rgb_image(data, rules))).permute(2, 0, 1)
    rules.check_size(header.width, header.height)
    try:
        return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError as error:  # torchvision has no error type
        reason = str(error).split(", ", 2)[-1].split(". ")[0].rstrip(".")  # "function, file:line, reason. advice"
        raise PictureError(f"damaged image: {reason}") from error
