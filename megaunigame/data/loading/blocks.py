"""Memory that the loader workers inherit and use again for every micro-batch.

Fresh shared memory costs several times the copy into it: the system creates it, clears its pages, and maps them in both
processes. Here the main process copies a block out at once, and the worker writes into it again.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 64 * 1024**2
"""Bytes of a block. Addresses alone: memory is taken as it is first written. A larger micro-batch is sent in memory of its
own."""
NO_RESERVE = 0x4000
"""Of mmap on Linux, which Python names from 3.13 on: untouched memory does not count."""
BETWEEN = 2
"""Blocks of a worker besides those that are prefetched: one that it writes, one that the main process copies out. A worker
begins a micro-batch when the main process has received the one `prefetch` before it, and copied out those before that one."""


@dataclass(frozen=True)
class Place:
    """What is in a block."""

    block: int
    nbytes: int


class Blocks:
    """The blocks of all workers of one loader; made before the workers, by the main process."""

    def __init__(self, workers: int, prefetch: int):
        self.of_worker = prefetch + BETWEEN
        self._taken = 0
        kind = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | NO_RESERVE
        self._memory = [mmap.mmap(-1, BLOCK, flags=kind) for _ in range(workers * self.of_worker)]

    def take(self, worker: int, nbytes: int) -> tuple[Place, Tensor] | None:
        """The next block of this worker, in its process, uint8 (nbytes,); None: that is too much for one."""
        if nbytes > BLOCK:
            return None
        place = Place(worker * self.of_worker + self._taken % self.of_worker, nbytes)
        self._taken += 1
        return place, self.at(place)

    def at(self, place: Place) -> Tensor:
        """uint8 (nbytes,): a view."""
        return torch.frombuffer(self._memory[place.block], dtype=torch.uint8, count=place.nbytes)
