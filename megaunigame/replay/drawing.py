"""Which records are replayed: by the rank of their loss, the hardest first."""

from __future__ import annotations

import numpy as np


def draw_probabilities(size: int, temperature: float) -> np.ndarray:
    """(size,) float64: probability of each record, hardest first, to be drawn first.

    softmax over j of (size - 1 - j) / temperature: only the rank of a loss counts, not its value.
    """
    weights = np.exp(draw_logits(size, temperature))
    return weights / weights.sum()


def draw_logits(size: int, temperature: float) -> np.ndarray:
    """(size,) float64, the largest is 0."""
    return -np.arange(size) / max(temperature, 1e-6)
