"""Weights of a checkpoint, read when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from megaunigame.storage.pieces import Piece


class Weights(Protocol):
    """Lazily read weights, under the names of this family's modules."""

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> torch.Size: ...

    def read(self, name: str) -> Tensor: ...

    def pieces(self, name: str) -> Sequence[Piece] | None:
        """Where the elements of the flattened tensor lie, in their order; None: only `read` has them."""
        ...
