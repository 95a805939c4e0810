"""Finding a size of a family by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from megaunigame.errors import ModelError
from megaunigame.registry import unknown

T = TypeVar("T")


def named(sizes: Mapping[str, T], size: str, family: str) -> T:
    """The entry of `size`. Raises ModelError naming the nearest one and all legal ones."""
    if size not in sizes:
        raise ModelError(unknown(f"size of {family}", size, list(sizes)))
    return sizes[size]
