"""Scaling of a gradient: shared encoders learn from generation too fast otherwise (arXiv 2601.21406)."""

from __future__ import annotations

from torch import Tensor


def scale_gradient(visual: Tensor, factors: Tensor) -> Tensor:
    """Visual tokens (B, I, N, D) unchanged; the gradient of row b is multiplied by factors[b]."""
    shape = (-1,) + (1,) * (visual.dim() - 1)
    return visual.detach() + (visual - visual.detach()) * factors.view(shape).to(visual.dtype)
