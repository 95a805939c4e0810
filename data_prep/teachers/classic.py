"""Regions without a trained model: Felzenszwalb and Huttenlocher's graph-based segmentation, from scikit-image.

No weights, no license, the same result everywhere: for tests, demos and a first look. Regions follow color,
not objects. Depth has no such teacher: without a trained model one picture says too little about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from megaunigame.data.decode import Sample
from megaunigame.errors import ConfigError
from megaunigame.settings import at_least

from .base import Machine, Prediction, Teacher
from .ids import ids_from_labels
from .pictures import shrunk


class Classic(Teacher):
    tasks = ("segmentation",)

    @dataclass
    class Config:
        scale: float = 300.0
        """Larger: fewer and larger regions."""
        sigma: float = 0.8
        """Width of the Gaussian that smooths the picture first, in pixels."""
        min_size: int = 200
        """Smallest region, in pixels."""
        longest_side: int = at_least(1, 384)
        """Larger pictures are shrunk to it first, so that the sizes above mean the same for all."""

    def __init__(self, task: str, config: Config, machine: Machine):
        try:
            from skimage.segmentation import felzenszwalb
        except ImportError as error:
            raise ConfigError(
                "--segmentation-teacher classic needs scikit-image; type pip install 'megaunigame[teachers]'."
            ) from error
        self._config, self._felzenszwalb, self._version = config, felzenszwalb, version("scikit-image")

    @property
    def identity(self) -> dict[str, Any]:
        return {"method": "felzenszwalb", "scikit_image": self._version, "license": "none needed", **asdict(self._config)}

    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        return [self._segment(sample) for sample in samples]

    def _segment(self, sample: Sample) -> np.ndarray:
        picture = np.asarray(shrunk(sample, self._config.longest_side))
        labels = self._felzenszwalb(picture, scale=self._config.scale, sigma=self._config.sigma, min_size=self._config.min_size)
        return ids_from_labels(labels + 1)  # its labels start at 0, and every pixel has one
