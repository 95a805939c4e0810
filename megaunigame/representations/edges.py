"""Edges of the image, white on black: a target that needs no teacher (Canny with the thresholds of the segmentation)."""

from __future__ import annotations

import cv2
import torch
from torch import Tensor

from megaunigame.data.decode import Sample
from megaunigame.representations.base import Representation
from megaunigame.representations.segmentation import HIGH, LOW


class Edges(Representation):
    needs = ""

    def picture(self, sample: Sample) -> Tensor | None:
        if sample.image is None:
            return None
        gray = cv2.cvtColor(sample.image.permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2GRAY)
        return torch.from_numpy(cv2.Canny(gray, LOW, HIGH)).expand(3, -1, -1).contiguous()
