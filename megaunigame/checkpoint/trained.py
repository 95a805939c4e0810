"""The weights of a checkpoint: those the run began with, with the trained ones in their place and adapters merged."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor

from megaunigame.checkpoint.manager import read_manifest
from megaunigame.config import LoraConfig
from megaunigame.models.base import Weights
from megaunigame.models.weights.loading import check_names

LORA = re.compile(r"(.+)\.lora_([AB])\.default\.weight")


def trained_weights(step_folder: Path) -> dict[str, Tensor]:
    """Whole fp32 tensors of every trained parameter of a step folder. Raises CheckpointError when it is damaged."""
    read_manifest(step_folder)
    return get_fp32_state_dict_from_zero_checkpoint(
        str(step_folder.parent), tag=step_folder.name, exclude_frozen_parameters=True
    )


class MergedWeights:
    """Implements `Weights`; adapters are merged as W + (alpha / rank) B A. All trained weights are read on first use."""

    def __init__(self, base: Weights, step_folder: Path, lora: LoraConfig):
        self.base, self.step_folder, self.scale = base, step_folder, lora.alpha / lora.rank

    @cached_property
    def trained(self) -> dict[str, Tensor]:
        return trained_weights(self.step_folder)

    def check(self) -> None:
        """Read the trained weights. Raises ModelError when the base does not have them all: it is another model."""
        names = {f"{found[1]}.weight" if (found := LORA.fullmatch(name)) else name for name in self.trained}
        check_names(names | self.base.names(), self.base.names(), f"The model of {self.step_folder}")

    def names(self) -> set[str]:
        return self.base.names()

    def shape(self, name: str) -> torch.Size:
        return self.trained[name].shape if name in self.trained else self.base.shape(name)

    def read(self, name: str) -> Tensor:
        module = name.removesuffix(".weight")
        low = self.trained.get(f"{module}.lora_A.default.weight")
        if low is not None:
            return self.base.read(name).float() + self.scale * (self.trained[f"{module}.lora_B.default.weight"] @ low)
        return self.trained[name] if name in self.trained else self.base.read(name)
