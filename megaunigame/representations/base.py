"""Interface of representations: target pictures computed from a decoded sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from megaunigame.data.decode import Sample
from megaunigame.errors import ConfigError

ANNOTATE = "Make it: megaunigame prepare annotate IN --out OUT --tasks depth,segmentation"


class Representation(ABC):
    """One file in this folder, found by module name. A family maps the picture to its own range when it collates rows."""

    needs: ClassVar[str]
    """What a sample needs in addition to its image: a field of a shard; empty: nothing."""
    remedy: ClassVar[str] = "Pack the shards with it"
    """What to do where samples lack it, for messages."""
    renderings: ClassVar[tuple[str, ...]] = ()
    """Ways to draw the picture, the default first; empty: only one."""

    def __init__(self, rendering: str = ""):
        legal = ("", *self.renderings)
        if rendering not in legal:
            kinds = ", ".join(self.renderings) or "none, leave it out"
            raise ConfigError(f"{type(self).__name__} has no rendering {rendering!r}. Legal: {kinds}.")
        self.rendering = rendering or (self.renderings[0] if self.renderings else "")

    @abstractmethod
    def picture(self, sample: Sample) -> Tensor | None:
        """uint8 (3, h, w), or None when the sample lacks what the picture needs."""

    measure: ClassVar[str] = "1 - mean absolute error"
    """Name of the measure in `agreement`."""

    scored_on_objects: ClassVar[bool] = True
    """Whether `agreement` can be taken over a part of the picture."""

    def agreement(self, drawn: Tensor, truth: Tensor, where: Tensor | None = None) -> float:
        """How well a drawn picture agrees with the true one, both uint8 (3, h, w): 0..1, 1 = equal.

        `where`, bool (h, w), with a true pixel: over those pixels only.
        """
        errors = (drawn.float() - truth.float()).abs()
        return 1 - float((errors if where is None else errors[:, where]).mean()) / 255
