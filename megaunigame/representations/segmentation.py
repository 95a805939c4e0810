"""Instance segmentation as a picture, background black: colored regions, or white contours (arXiv 2601.21406).

Contours are the pixel-wise maximum of the Canny edges of every mask. Masks are stored as one map of ids, so an edge that a
smaller mask covers is drawn by that mask. A data set that has contours in place of ids is drawn as it is.

The color of an instance is drawn from the sample's key. Colors by position, size or class would leak the answers to questions
about them, and a model that learns to paint them would seem to have learned to see.
"""

from __future__ import annotations

import zlib

import cv2
import numpy as np
import torch
from torch import Tensor

from megaunigame.data.decode import CONTOURS, CONTOURS_FIELD, SEGMENTATION, SEGMENTATION_FIELD, Sample
from megaunigame.representations.base import ANNOTATE, Representation

LOW, HIGH = 100, 200
"""Thresholds of Canny's gradients."""

DARK = 96
"""The brightest channel of background stays below this, of 255."""


class Segmentation(Representation):
    needs = SEGMENTATION_FIELD
    remedy = f"{ANNOTATE}; or, for samples with {CONTOURS_FIELD}, type renderings={{segmentation: contours}}"
    renderings = ("regions", "contours")
    measure = "IoU of what is not background"
    scored_on_objects = False

    def picture(self, sample: Sample) -> Tensor | None:
        if self.rendering == "contours":
            edges = _contours_of(sample)
            return None if edges is None else edges.expand(3, -1, -1).contiguous()
        ids = sample.picture(SEGMENTATION)
        if ids is None:
            return None
        palette = torch.from_numpy(region_colors(sample.key))  # (256, 3)
        return palette[ids.long()].permute(2, 0, 1).contiguous()

    def agreement(self, drawn: Tensor, truth: Tensor, where: Tensor | None = None) -> float:
        """Intersection over union of the covered area: colors of regions are arbitrary."""
        a, b = (picture.amax(0) > DARK for picture in (drawn, truth))
        union = int((a | b).sum())
        return int((a & b).sum()) / union if union else 1.0


def _contours_of(sample: Sample) -> Tensor | None:
    """uint8 (H, W), 255 on a contour: as stored, else drawn from the ids; None for a sample with neither."""
    stored = sample.picture(CONTOURS)
    if stored is not None:
        return stored
    ids = sample.picture(SEGMENTATION)
    return None if ids is None else torch.from_numpy(contours(ids.numpy()))


def contours(ids: np.ndarray) -> np.ndarray:
    """uint8 ids (H, W), 0 = none -> uint8 (H, W): 255 on the contour of any mask."""
    drawn = np.zeros_like(ids)
    for i in np.unique(ids[ids > 0]):
        np.maximum(drawn, cv2.Canny((ids == i).astype(np.uint8) * 255, LOW, HIGH), out=drawn)
    return drawn


def region_colors(key: str) -> np.ndarray:
    """uint8 (256, 3): a color per id, black for id 0. Consecutive ids get hues that are far apart."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    # The golden ratio spreads any number of consecutive places evenly; places are shuffled in blocks of 5, so that the
    # order of the ids (often by area) cannot be read off the colors.
    places = (np.arange(0, 255, 5)[:, None] + rng.permuted(np.tile(np.arange(5), (51, 1)), axis=1)).ravel()
    hue = (places * 0.6180339887 + rng.random()) % 1.0 * 6.0
    # HSV with value 1 and saturation 0.9: each channel is a clipped triangle wave of the hue.
    channels = np.stack([np.abs((hue + shift) % 6.0 - 3.0) - 1.0 for shift in (0.0, 4.0, 2.0)], axis=1)
    colors = 1.0 - 0.9 * (1.0 - np.clip(channels, 0.0, 1.0))
    return np.concatenate([np.zeros((1, 3)), colors * 255]).round().astype(np.uint8)
