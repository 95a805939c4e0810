"""A frozen tokenizer of a model: replicated, always in eval mode, and not in the model's module tree."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import nn

from megaunigame.models.base import Weights
from megaunigame.models.weights.loading import load_plain

T = TypeVar("T", bound=nn.Module)


class Frozen(Generic[T]):
    """Holds one module for a model. Not a module itself, so no engine partitions, trains or saves its content."""

    def __init__(self, name: str):
        """`name`: of the module, for messages."""
        self.name = name
        self._kept: T | None = None

    def keep(self, module: T) -> None:
        """Hold `module` (already on its device), frozen."""
        self._kept = module.eval().requires_grad_(False)

    def load(self, module: T, weights: Weights, path: str, device: torch.device) -> None:
        """Copy weights of the folder `path` into `module`, move it, and hold it, in float32. Raises ModelError for others."""
        load_plain(module, weights, f"The {self.name} in {path}")
        for tensor in (*module.parameters(), *module.buffers()):  # diffusers warns about module.to(float32)
            tensor.data = tensor.data.to(device, torch.float32 if tensor.is_floating_point() else tensor.dtype)
        self.keep(module)

    @property
    def module(self) -> T:
        """Raises RuntimeError before anything was loaded."""
        if self._kept is None:
            raise RuntimeError(f"The {self.name} is not loaded: call load_frozen(path, device) first.")
        return self._kept
