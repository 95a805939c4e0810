"""Weights read lazily from checkpoint files with other names (implements `Weights`)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megaunigame.errors import ModelError
from megaunigame.models.weights.loading import SHOWN
from megaunigame.models.weights.tensor_files import KINDS, TensorFiles
from megaunigame.storage.pieces import Piece, part

FUSED = ".qkv."


@dataclass(frozen=True)
class StoredTensor:
    """Where one parameter is stored."""

    key: str
    third: int | None = None
    """Which third of a fused query-key-value tensor; None: the whole tensor."""
    squeeze: bool = False
    """Whether it is stored with an additional first dimension of 1."""
    flatten: bool = False
    """Whether it is stored as a 1 x 1 convolution, while the parameter is a matrix."""


class RenamedWeights:
    """Our name of every parameter -> where it is stored."""

    def __init__(self, files: TensorFiles, stored: Mapping[str, StoredTensor]):
        self.files = files
        self.stored = dict(stored)

    def names(self) -> set[str]:
        return set(self.stored)

    def prefixed(self, prefix: str) -> RenamedWeights:
        """The same weights, every name with `prefix` before it."""
        return RenamedWeights(self.files, {prefix + name: stored for name, stored in self.stored.items()})

    def shape(self, name: str) -> torch.Size:
        """Shape of one tensor, read from the header of its file."""
        stored = self.stored[name]
        shape = self.files.shape(stored.key)
        if stored.third is not None:
            return torch.Size([shape[0] // 3, *shape[1:]])
        return shape[:2] if stored.flatten else shape[1:] if stored.squeeze else shape

    def check_kinds(self, names: Iterable[str], what: str) -> None:
        """Raises ModelError for a tensor of other numbers than plain weights have: quantized ones, converted, are nonsense."""
        for name in sorted(names):
            key = self.stored[name].key
            if (kind := self.files.kind(key)) not in KINDS.values():
                raise ModelError(
                    f"{key} in {what} has numbers of the type {kind}, as quantized weights have; legal are "
                    f"{', '.join(KINDS.values())}. Take the weights that are not quantized."
                )

    def read(self, name: str) -> Tensor:
        stored = self.stored[name]
        if stored.third is not None:
            third = self.files.shape(stored.key)[0] // 3
            return self.files.read(stored.key, slice(stored.third * third, (stored.third + 1) * third))
        tensor = self.files.read(stored.key)
        return tensor.flatten(1) if stored.flatten else tensor[0] if stored.squeeze else tensor

    def pieces(self, name: str) -> list[Piece] | None:
        stored, whole = self.stored[name], self.files.pieces(self.stored[name].key)
        if whole is None or stored.third is None:
            return whole  # dimensions of one element do not move any
        third = whole[0].count // 3
        return part(whole, range(stored.third * third, (stored.third + 1) * third))


@dataclass(frozen=True)
class KeyTable:
    """How the keys of a family's checkpoints are read."""

    family: str
    translate: Callable[[str], str | None]
    """Stored key -> name of our parameter (still fused: `.qkv.`), or None for a key of another model."""
    unused: re.Pattern[str]
    """Keys in checkpoints that are not used for any output."""
    frozen: str | tuple[str, ...]
    """Prefix of the names that belong to the frozen tokenizer, or prefixes."""
    expected: str
    """Description of the expected keys, for the message."""
    squeezed: tuple[str, ...] = ()
    """Ends of keys whose tensors are stored with an additional first dimension of 1."""
    flattened: tuple[str, ...] = ()
    """Ends of keys whose tensors are stored as 1 x 1 convolutions and read as matrices."""
    fused: str = FUSED
    """Part of the names of fused query-key-value tensors, which are read as three; "": none are."""

    @property
    def frozen_root(self) -> str:
        """What all names of the frozen tokenizer begin with, and have not in its module."""
        return self.frozen if isinstance(self.frozen, str) else os.path.commonprefix(self.frozen)

    def open(self, files: TensorFiles, what: str | Path) -> tuple[RenamedWeights, RenamedWeights]:
        """(weights of the trained model, weights of the frozen tokenizer) under our names; the latter without `frozen_root`.

        Raises ModelError, naming `what`, when a key belongs to another model.
        """
        model: dict[str, StoredTensor] = {}
        frozen: dict[str, StoredTensor] = {}
        unknown = []
        for key in sorted(files.index):
            if self.unused.fullmatch(key):
                continue
            name = self.translate(key)
            if name is None:
                unknown.append(key)
            elif name.startswith(self.frozen):
                frozen[name.removeprefix(self.frozen_root)] = StoredTensor(key, flatten=key.endswith(self.flattened))
            elif self.fused and self.fused in name:
                for third, letter in enumerate("qkv"):
                    model[name.replace(self.fused, f".{letter}_proj.")] = StoredTensor(key, third)
            else:
                model[name] = StoredTensor(key, squeeze=key.endswith(self.squeezed))
        if unknown:
            raise ModelError(
                f"{what} is the checkpoint of another model: {len(unknown)} keys are not {self.family}'s, such as "
                f"{', '.join(unknown[:SHOWN])}. Expected {self.expected}."
            )
        return RenamedWeights(files, model), RenamedWeights(files, frozen)
