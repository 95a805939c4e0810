"""The weights of a checkpoint: those the run began with, with the trained ones in their place and adapters merged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from megaunigame.checkpoint.manifest import read_manifest
from megaunigame.checkpoint.saved_learner import SavedLearner
from megaunigame.checkpoint.unreadable import reading
from megaunigame.config import LoraConfig
from megaunigame.engine.optimizer_slices import AVERAGE, MASTER
from megaunigame.errors import ModelError
from megaunigame.models.base import Weights
from megaunigame.models.weights.loading import check_names
from megaunigame.storage.foreign_text import quoted
from megaunigame.storage.pieces import Piece

LORA = re.compile(r"(.+)\.lora_(?:[AB]|magnitude_vector)\.default\.weight")
"""Name of a part of the adapter of a layer."""


def saved_learner(step_folder: Path) -> SavedLearner:
    """The trained weights of a step folder, none of them read yet. Raises CheckpointError when it is damaged."""
    with reading(step_folder):
        read_manifest(step_folder)
    return SavedLearner(step_folder)


def with_adapter(weight: Tensor, low: Tensor, high: Tensor, scale: float, lengths: Tensor | None, name: str) -> Tensor:
    """float32 V = W + scale x B A of a weight W (out, in), A (rank, in) and B (out, rank); with DoRA, where there are lengths m
    (out,) of its rows, m V / |V|. `name`: of the weight.

    Raises ModelError for a row of zeros with DoRA: it has no direction.
    """
    merged = weight.to(torch.float32, copy=True)
    merged += (high.float() @ low.float()).mul_(scale)  # of the largest matrices, two copies are gigabytes
    if lengths is not None:
        norms = merged.norm(dim=1)
        if zeros := int((norms == 0).sum()):
            raise ModelError(
                f"{quoted(name, 200)} has {zeros} row(s) of zeros with its adapters, which DoRA cannot give a length: the "
                "result would be NaN. Train the adapters without DoRA (model.lora.dora=false), or without this layer "
                "(model.lora.targets)."
            )
        merged *= (lengths.float() / norms).unsqueeze(1)
    return merged


class MergedWeights:
    """Implements `Weights`; adapters are merged (`with_adapter`). One tensor is read at a time."""

    def __init__(self, base: Weights, step_folder: Path, lora: LoraConfig, *, averaged: bool = False):
        """`averaged`: with the average of the trained weights in their place."""
        self.base, self.step_folder, self.scale = base, step_folder, lora.scale
        self.kind = AVERAGE if averaged else MASTER

    @cached_property
    def saved(self) -> SavedLearner:
        return saved_learner(self.step_folder)

    def check(self) -> None:
        """Raise ModelError when the base does not have all trained weights: it is another model."""
        names = {f"{found[1]}.weight" if (found := LORA.fullmatch(name)) else name for name in self.saved.layouts}
        check_names(names | self.base.names(), self.base.names(), f"The model of {self.step_folder}")

    def names(self) -> set[str]:
        return self.base.names()

    def shape(self, name: str) -> torch.Size:
        trained = self.saved.layouts.get(name)
        return self.base.shape(name) if trained is None else torch.Size(trained.shape)

    def read(self, name: str) -> Tensor:
        module = name.removesuffix(".weight")
        low, high, length = (f"{module}.lora_{part}.default.weight" for part in ("A", "B", "magnitude_vector"))
        if low in self.saved.layouts:
            rows = self._trained(length) if length in self.saved.layouts else None
            return with_adapter(self.base.read(name), self._trained(low), self._trained(high), self.scale, rows, name)
        return self._trained(name) if name in self.saved.layouts else self.base.read(name)

    def pieces(self, name: str) -> Sequence[Piece] | None:
        if f"{name.removesuffix('.weight')}.lora_A.default.weight" in self.saved.layouts:
            return None
        return self.saved.pieces(name, self.kind) if name in self.saved.layouts else self.base.pieces(name)

    def _trained(self, name: str) -> Tensor:
        return self.saved.whole(name, self.kind)
