"""Classifier-free guidance of BAGEL: by the text, by the source picture, and a norm that guidance may not exceed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RENORMS = ("global", "channel", "text_channel", "none")
EPSILON = 1e-8


class Guidance(NamedTuple):
    """Scales and norm of one kind of request."""

    text: float
    """Not above 1: no guidance at all."""
    image: float
    """Not above 1: none by the source picture."""
    start: float
    """Guided at times above `start`."""
    renorm: str
    """One of RENORMS. `global`: the norm of a row; `channel`: of a token; `text_channel`: of a token, after the text alone;
    `none`: not kept."""
    least: float = 0.0
    """The smallest factor of a norm."""

    def at(self, t: float) -> bool:
        """Whether a step from time `t` is guided."""
        return self.text > 1 and t > self.start


def guided(velocity: Tensor, textless: Tensor, pictureless: Tensor, guidance: Guidance) -> Tensor:
    """Velocities (B, N, C) with all conditions, without the text, and without the source pictures -> (B, N, C)."""
    by_text = textless + guidance.text * (velocity - textless)
    if guidance.renorm == "text_channel":
        by_text = _shrunk(by_text, velocity, (-1,), guidance.least)
    both = pictureless + guidance.image * (by_text - pictureless) if guidance.image > 1 else by_text
    if guidance.renorm in ("global", "channel"):
        both = _shrunk(both, velocity, (-1,) if guidance.renorm == "channel" else (-2, -1), guidance.least)
    return both


def _shrunk(guided: Tensor, velocity: Tensor, of: tuple[int, ...], least: float) -> Tensor:
    """`guided` where its norm is not above that of `velocity`, else of that norm."""
    norms = (torch.linalg.vector_norm(each, dim=of, keepdim=True) for each in (velocity, guided))
    kept, large = norms
    return guided * (kept / (large + EPSILON)).clamp(least, 1)
