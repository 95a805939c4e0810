"""Packs all tensors of an object into one block of memory, so that a loader worker sends one block instead of dozens.

Sending a tensor to another process costs about 0.5 ms of CPU for any size (its memory is passed as a file descriptor, over a
separate socket), and pinning it costs another call. A micro-batch has ten to forty tensors. A small block is part of the
message itself; a large one is written where the main process copies it out (`blocks`).
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

from megaunigame.data.loading.blocks import Blocks, Place

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
    memory: Tensor | np.ndarray | Place
    """uint8 (bytes,), or where it is. A large tensor of a loader worker is shared with the main process, not copied again."""

    def unpacked(self, blocks: Blocks | None = None, *, pin: bool = False) -> T:
        """The object; its tensors are views of one block of memory, pinned with `pin`. `blocks`: those given to `pack`."""
        if isinstance(self.memory, Place):
            assert blocks is not None
            memory = torch.empty(self.memory.nbytes, dtype=torch.uint8, pin_memory=pin).copy_(blocks.at(self.memory))
        else:
            memory = torch.as_tensor(self.memory)
            memory = memory.pin_memory() if pin else memory

        def view(span: _Span) -> Tensor:
            return memory[span.start : span.start + span.bytes].view(span.dtype).view(span.shape)

        return cast(T, _mapped(self.content, _Span, view))


def pack(content: T, blocks: Blocks | None = None) -> Package[T]:
    """Copy every CPU tensor found in dataclasses and dictionaries, at any depth, into one block, in a loader worker one of
    `blocks`."""
    tensors: list[tuple[_Span, Tensor]] = []
    end = 0

    def place(tensor: Tensor) -> _Span:
        nonlocal end
        span = _Span(end, tensor.shape, tensor.dtype)
        end += -(-span.bytes // ALIGNMENT) * ALIGNMENT
        tensors.append((span, tensor))
        return span

    spans = _mapped(content, Tensor, place)
    worker = get_worker_info()
    if worker is None or end <= INLINE:
        memory = torch.empty(end, dtype=torch.uint8)
        sent: Tensor | np.ndarray | Place = memory.numpy()
    elif blocks is not None and (taken := blocks.take(worker.id, end)) is not None:
        sent, memory = taken
    else:
        memory = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(end))  # as torch's own collation does
        sent = memory
    for span, tensor in tensors:
        memory[span.start : span.start + span.bytes].view(span.dtype).view(span.shape).copy_(tensor)
    return Package(spans, sent)


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
