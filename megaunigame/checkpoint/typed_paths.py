"""Paths that people type: one folder can be typed in many ways."""

from __future__ import annotations

import os

from megaunigame.config import AUTO, NEVER

WORDS = ("", AUTO, NEVER)
"""What may be typed in place of a path."""


def same_place(typed: str, other: str) -> bool:
    """Whether both are the same word, or paths of the same place. What is typed the same is the same, from any directory."""
    if typed == other or typed in WORDS or other in WORDS:
        return typed == other
    return os.path.realpath(typed) == os.path.realpath(other)
