"""Masks and label maps as one map of ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_IDS = 255
"""An id is a byte and 0 means none."""


def ids_from_masks(masks: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """bool (H, W) masks, which may overlap -> uint8 (H, W): the largest gets id 1, and small ones lie on top.

    Of more than 255 masks the 255 largest count; empty ones do not, and no mask at all gives zeros.
    """
    areas = [int(mask.sum()) for mask in masks]
    falling = sorted((k for k, area in enumerate(areas) if area), key=lambda k: -areas[k])  # stable
    ids = np.zeros((height, width), dtype=np.uint8)
    for number, k in enumerate(falling[:MOST_IDS], start=1):
        ids[masks[k]] = number
    return ids


def ids_from_labels(labels: np.ndarray) -> np.ndarray:
    """Integer (H, W), one label per pixel, 0 = none -> uint8 (H, W): the 255 largest regions as ids, largest first."""
    found, region, areas = np.unique(labels, return_inverse=True, return_counts=True)
    falling = [k for k in np.argsort(-areas, kind="stable") if found[k] != 0]
    id_of = np.zeros(len(found), dtype=np.uint8)
    for number, k in enumerate(falling[:MOST_IDS], start=1):
        id_of[k] = number
    return id_of[region.reshape(labels.shape)]
