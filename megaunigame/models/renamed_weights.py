"""Weights read lazily from checkpoint files that know them under other names (the `Weights` contract)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megaunigame.models.tensor_files import TensorFiles


@dataclass(frozen=True)
class Source:
    """Where one parameter is stored."""

    key: str
    third: int | None = None
    """Which third of a fused query-key-value tensor; None: the whole tensor."""
    squeeze: bool = False
    """Whether it is stored with a first dimension of 1 that the parameter does not have."""


class RenamedWeights:
    """Our name of every parameter -> its source."""

    def __init__(self, files: TensorFiles, sources: Mapping[str, Source]):
        self.files = files
        self.sources = dict(sources)

    def names(self) -> set[str]:
        return set(self.sources)

    def prefixed(self, prefix: str) -> RenamedWeights:
        """The same weights, every name with `prefix` before it."""
        return RenamedWeights(self.files, {prefix + name: source for name, source in self.sources.items()})

    def shape(self, name: str) -> torch.Size:
        """Shape of one tensor, read from the header of its file."""
        source = self.sources[name]
        shape = self.files.shape(source.key)
        if source.third is not None:
            return torch.Size([shape[0] // 3, *shape[1:]])
        return shape[1:] if source.squeeze else shape

    def read(self, name: str) -> Tensor:
        source = self.sources[name]
        if source.third is not None:
            third = self.files.shape(source.key)[0] // 3
            return self.files.read(source.key, slice(source.third * third, (source.third + 1) * third))
        tensor = self.files.read(source.key)
        return tensor[0] if source.squeeze else tensor
