"""How a model answers and draws; the same names in Python and on the command line."""

from __future__ import annotations

from dataclasses import dataclass

from megaunigame.settings import at_least


@dataclass
class AnswerSettings:
    max_tokens: int = at_least(1, 128)
    """Longest answer, in tokens."""
    temperature: float = at_least(0, 0.0)
    """0: the likeliest token each time."""
    seed: int = at_least(0, 0)


@dataclass
class DrawSettings:
    guidance: float = at_least(0, 1.0)
    """Scale of classifier-free guidance: u + guidance * (c - u); 1: none."""
    temperature: float = at_least(0, 1.0)
    """0: the likeliest codes; without effect in a family that draws no codes."""
    seed: int = at_least(0, 0)


REDRAW_TEMPERATURE = 0.0
"""A depth map is not a matter of taste."""
BATCH = 8
"""Rows that run together."""
