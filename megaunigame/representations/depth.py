"""Relative inverse depth as a grey picture: near is white."""

from __future__ import annotations

import torch
from torch import Tensor

from megaunigame.data.decode import Sample
from megaunigame.representations.base import Representation


class Depth(Representation):
    needs = "depth.png"

    def picture(self, sample: Sample) -> Tensor | None:
        if sample.depth is None:
            return None
        grey = (sample.depth // 257).to(torch.uint8)  # 0..65535 -> 0..255, (H, W)
        return grey.expand(3, *grey.shape).contiguous()
