"""The image itself."""

from __future__ import annotations

from torch import Tensor

from megaunigame.data.decode import Sample
from megaunigame.representations.base import Representation


class Pixel(Representation):
    needs = ""

    def picture(self, sample: Sample) -> Tensor | None:
        return sample.image
