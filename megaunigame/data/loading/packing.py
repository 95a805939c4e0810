"""Packs all tensors of an object into one block of memory, so that a loader worker sends one block instead of dozens.

Sending a tensor to another process costs about 0.5 ms of CPU for any size (its memory is passed as a file descriptor, over a
separate socket), and pinning it costs another call. A micro-batch has ten to forty tensors. A small block is part of the
message itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

T = TypeVar("T")
ALIGNMENT = 64
"""Bytes; every tensor begins at a multiple."""
INLINE = 64 * 1024
"""Bytes up to which a block is sent, not shared."""


@dataclass(frozen=True)
class _Span:
    """Place of a tensor in the block."""

    start: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Package(Generic[T]):
    """An object whose tensors are in `memory`."""

    content: Any
    """The object, with a span in place of each tensor."""
    memory: Tensor | np.ndarray
    """uint8 (bytes,). A large block of a loader worker is shared with the main process from the start, not copied again."""

    def pin_memory(self) -> Package[T]:
        """Called by the DataLoader."""
        return dataclasses.replace(self, memory=torch.as_tensor(self.memory).pin_memory())

    def unpacked(self) -> T:
        """The object; its tensors are views of `memory`."""
        memory = torch.as_tensor(self.memory)

        def view(span: _Span) -> Tensor:
            return memory[span.start : span.start + span.bytes].view(span.dtype).view(span.shape)

        return cast(T, _mapped(self.content, _Span, view))


def pack(content: T) -> Package[T]:
    """Copy every CPU tensor found in dataclasses and dictionaries, at any depth, into one block."""
    tensors: list[tuple[_Span, Tensor]] = []
    end = 0

    def place(tensor: Tensor) -> _Span:
        nonlocal end
        span = _Span(end, tensor.shape, tensor.dtype)
        end += -(-span.bytes // ALIGNMENT) * ALIGNMENT
        tensors.append((span, tensor))
        return span

    spans = _mapped(content, Tensor, place)
    shared = get_worker_info() is not None and end > INLINE
    if shared:
        memory = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(end))  # as torch's own collation does
    else:
        memory = torch.empty(end, dtype=torch.uint8)
    for span, tensor in tensors:
        memory[span.start : span.start + span.bytes].view(span.dtype).view(span.shape).copy_(tensor)
    return Package(spans, memory if shared else memory.numpy())


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A copy of `value` with every `kind` in it changed; parts without one are not copied."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {name: _mapped(item, kind, change) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        mapped = {name: _mapped(item, kind, change) for name, item in items.items()}
        changed = {name: item for name, item in mapped.items() if item is not items[name]}
        return dataclasses.replace(value, **changed) if changed else value
    return value
