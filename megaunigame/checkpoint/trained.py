"""The weights of a checkpoint: those the run began with, with the trained ones in their place and adapters merged."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from megaunigame.checkpoint.manifest import read_manifest
from megaunigame.checkpoint.saved_learner import SavedLearner
from megaunigame.checkpoint.unreadable import reading
from megaunigame.config import LoraConfig
from megaunigame.models.base import Weights
from megaunigame.models.weights.loading import check_names

LORA = re.compile(r"(.+)\.lora_([AB])\.default\.weight")


def saved_learner(step_folder: Path) -> SavedLearner:
    """The trained weights of a step folder, none of them read yet. Raises CheckpointError when it is damaged."""
    with reading(step_folder):
        read_manifest(step_folder)
    return SavedLearner(step_folder)


class MergedWeights:
    """Implements `Weights`; adapters are merged as W + (alpha / rank) B A. One tensor is read at a time."""

    def __init__(self, base: Weights, step_folder: Path, lora: LoraConfig):
        self.base, self.step_folder, self.scale = base, step_folder, lora.alpha / lora.rank

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
        low, high = (f"{module}.lora_{letter}.default.weight" for letter in "AB")
        if low in self.saved.layouts:
            return self.base.read(name).float() + self.scale * (self.saved.whole(high) @ self.saved.whole(low))
        return self.saved.whole(name) if name in self.saved.layouts else self.base.read(name)
