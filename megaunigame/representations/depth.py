"""Relative inverse depth as a gray picture: near is white."""

from __future__ import annotations

import torch
from torch import Tensor

from megaunigame.data.decode import DEPTH, DEPTH_FIELD, Sample
from megaunigame.representations.base import ANNOTATE, Representation


class Depth(Representation):
    needs = DEPTH_FIELD
    remedy = ANNOTATE

    def picture(self, sample: Sample) -> Tensor | None:
        depth = sample.picture(DEPTH)
        if depth is None:
            return None
        gray = (depth // 257).to(torch.uint8)  # 0..65535 -> 0..255, (H, W)
        return gray.expand(3, *gray.shape).contiguous()
