"""Counts the bytes of live tensors: what a forward and its backward hold at once, on any device.

On the meta device or under a FakeTensorMode nothing is allocated, so a model of any size can be counted on a laptop. The count
is exact for what torch operations return; it excludes workspaces of kernels (cuDNN) and the rounding and fragmentation of an
allocator.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Context that counts the storages that operations inside it create, until they are freed.

    Views count nothing; a tensor saved for the backward counts until the graph frees it. Older tensors and their views do not
    count. Storages are still tracked after the context is left; it may be entered again. With a FakeTensorMode, enter this one
    last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        """Bytes alive now."""
        self.peak = 0
        """Most bytes alive at once since the start or `reset_peak`."""
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def reset_peak(self) -> None:
        """Reset the peak to the bytes alive now."""
        self.peak = self.current

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = {id(storage) for storage in _storages((args, kwargs))}
        result = func(*args, **kwargs)
        for storage in _storages(result):
            if id(storage) not in given:
                self._follow(storage)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive[key] = weakref.ref(storage, partial(self._freed, key, size))
        self.current += size
        self.peak = max(self.peak, self.current)

    def _freed(self, key: int, size: int, _: weakref.ref[torch.UntypedStorage]) -> None:
        del self._alive[key]
        self.current -= size


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    """Of all strided tensors in a nest of lists, tuples and dictionaries. Runs twice for every operation: no pytree."""
    if isinstance(tree, Tensor):
        if tree.layout == torch.strided:
            yield tree.untyped_storage()
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from _storages(item)
    elif isinstance(tree, dict):
        yield from _storages(tuple(tree.values()))
