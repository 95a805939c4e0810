"""Watches a plain model for the first module whose output, or the gradient of whose output, is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class FirstNotFinite:
    """Hooks in every module of a model; inside a `with` block.

    A module runs its hook after those of the modules inside it, so the first one is the innermost. In the backward, gradients
    come in the reverse order of the forward.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.forward = ""
        """Name of the module; empty: every output was finite."""
        self.backward = ""
        self._hooks: list[Any] = []

    def __enter__(self) -> FirstNotFinite:
        for name, module in self.model.named_modules():
            self._hooks.append(module.register_forward_hook(self._hook(name or "the whole model")))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Any:
        def note_gradient(gradient: Tensor) -> None:
            if not self.backward and not torch.isfinite(gradient).all():
                self.backward = name

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for tensor in tensors_in(output):
                if not self.forward and not torch.isfinite(tensor).all():
                    self.forward = name
                if tensor.requires_grad:
                    tensor.register_hook(note_gradient)

        return hook


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The floating tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from tensors_in(inner)
