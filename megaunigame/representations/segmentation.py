"""Instance segmentation as a picture of coloured regions; background is black.

The colour of an instance is drawn from the sample's key. Colours that follow position, size or class would state the
answers to questions about them, and a model that learns to paint them would seem to have learned to see.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from megaunigame.data.decode import Sample
from megaunigame.representations.base import Representation


class Segmentation(Representation):
    def picture(self, sample: Sample) -> Tensor | None:
        if sample.segmentation is None:
            return None
        palette = torch.from_numpy(region_colours(sample.key))  # (256, 3)
        return palette[sample.segmentation.long()].permute(2, 0, 1).contiguous()


def region_colours(key: str) -> np.ndarray:
    """uint8 (256, 3): a colour per id, black for id 0. Ids that follow each other get hues that are far apart."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    # The golden ratio spreads any number of consecutive places evenly; places are shuffled in blocks of 5, so that the
    # order of the ids (often by area) cannot be read off the colours.
    places = (np.arange(0, 255, 5)[:, None] + rng.permuted(np.tile(np.arange(5), (51, 1)), axis=1)).ravel()
    hue = (places * 0.6180339887 + rng.random()) % 1.0 * 6.0
    # HSV with value 1 and saturation 0.9: each channel is a clipped triangle wave of the hue.
    channels = np.stack([np.abs((hue + shift) % 6.0 - 3.0) - 1.0 for shift in (0.0, 4.0, 2.0)], axis=1)
    colours = 1.0 - 0.9 * (1.0 - np.clip(channels, 0.0, 1.0))
    return np.concatenate([np.zeros((1, 3)), colours * 255]).round().astype(np.uint8)
