"""What a representation is: a target picture computed from a decoded sample."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from megaunigame.data.decode import Sample


class Representation(ABC):
    """One file in this folder, found by module name."""

    @abstractmethod
    def picture(self, sample: Sample) -> Tensor | None:
        """uint8 (3, h, w), or None when the sample does not carry what the picture needs."""
