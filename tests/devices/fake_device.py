"""An accelerator that is not there: tensors with shapes, types and devices, and without data.

torch's fake tensors can say they are on any device. Operations between the host and the device fail as they would on a real
one, and so does whatever needs a value on the host, for which a real host would wait: `item`, `nonzero`, a tensor as an index
by truth. Copies go through, so `Copies` notes them.

The backward of fake CUDA tensors asks for a driver. That of lazy ones runs where it was called, so passes with a backward
are made on a `lazy` device; no kernel of it exists either.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from megaunigame.models.base import UnifiedModel
from megaunigame.models.causal.model import CausalModel
from megaunigame.registry import find
from tests.multi_process.tiny_run import FOLDERS

DEVICE = torch.device("lazy", 0)
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Copies(TorchDispatchMode):
    """Notes the copies for which the host waits: every one to it, and those to the device that are not `non_blocking`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in COPIES:
            source, target = (args[1], args[0]) if func is torch.ops.aten.copy_.default else (args[0], result)
            waits = not (kwargs or {}).get("non_blocking", len(args) > 2 and args[2])
            if source.device != target.device and (target.device.type == "cpu" or waits):
                self.found.append(f"{tuple(source.shape)} {source.device} -> {target.device}")
        return result


@contextmanager
def no_waiting(monkeypatch: Any, device: torch.device = DEVICE) -> Iterator[Copies]:
    """Everything inside is fake; no operation may have the host wait for the device."""
    if not hasattr(torch, device.type):
        monkeypatch.setattr(torch, device.type, types.SimpleNamespace(), raising=False)  # checkpointing looks for it
    for module in [m for name, m in sys.modules.items() if name.startswith("transformers.") and "is_tracing" in vars(m)]:
        monkeypatch.setattr(module, "is_tracing", lambda *_: False)  # else it spares fake tensors what real ones wait for
    with FakeTensorMode(allow_non_fake_inputs=True), Copies() as copies:
        yield copies
    assert not copies.found


def on_host(function: Any) -> Any:
    """`function` on real tensors, inside of `no_waiting`: what the host computes from what only the host has."""

    def real(*given: Any, **named: Any) -> Any:
        with unset_fake_temporarily():
            return function(*given, **named)

    return real


def empty(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of this shape without data, to be called inside of `no_waiting`."""
    kept = dtype is None or not tensor.is_floating_point()
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype if kept else dtype, device=device)


def move(module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Parameters (as `dtype`) and buffers (as they are) to a device that has no data."""
    for part in module.modules():
        for name, value in list(part._parameters.items()):
            if value is not None:
                part._parameters[name] = nn.Parameter(empty(value, device, dtype), requires_grad=value.requires_grad)
        for name, value in list(part._buffers.items()):
            if value is not None:
                part._buffers[name] = empty(value, device)


def load(family: str, home: Any, checkpointing: bool = False) -> CausalModel:
    """The tiny model of a family, real and in training mode."""
    kind = find("models", family, UnifiedModel)
    model = kind.load(home / FOLDERS[family], max_length=96, gradient_checkpointing=checkpointing)  # type: ignore[attr-defined]
    return model.train()


def transfer(model: CausalModel, device: torch.device, dtype: torch.dtype) -> None:
    """The trained weights as `dtype`, the frozen tokenizer in float32, as the engine has them; inside of `no_waiting`."""
    move(model, device, dtype)
    move(model.frozen.module, device)  # type: ignore[attr-defined]
