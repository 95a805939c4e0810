"""The order of samples: a pure function of (shard sizes, seed, window), endless over epochs.

In every epoch the shards are permuted and divided into windows of `window` shards, and the samples inside a window are
permuted together. Only one window is used at a time, so reads are local, and any position is computed directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np


def permutation(n: int, *seed: int) -> np.ndarray:
    """(n,) int64. Sorts raw generator output, which is stable over NumPy versions, unlike `Generator.permutation`."""
    return np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable")


class Order:
    """Maps a global sample position (counted over all epochs) to a sample.

    Memory is O(shards + samples of a few windows). `sizes` are the samples per shard (empty shards are
    allowed, an empty data set is not), `window` is in shards.
    """

    def __init__(self, sizes: Sequence[int] | np.ndarray, seed: int, window: int = 8):
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.samples = int(self.sizes.sum())
        self.seed = seed
        self.window = window
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._samples = lru_cache(maxsize=4)(self._make_window)

    def locate(self, position: int) -> tuple[int, int, int]:
        """(epoch, shard, index in the shard) of a position >= 0."""
        epoch, window, positions = self._find(position)
        shards, shard_ends, samples = self._samples(epoch, window)
        inside = int(samples[position - positions.start])
        at = int(np.searchsorted(shard_ends, inside, side="right"))
        return epoch, int(shards[at]), inside - (int(shard_ends[at - 1]) if at else 0)

    def locate_all(self, positions: range) -> tuple[np.ndarray, np.ndarray]:
        """Shards (n,) and indices in the shard (n,), int64, of consecutive positions."""
        shards, inside = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        start = positions.start
        while start < positions.stop:
            epoch, window, here = self._find(start)
            of_window, ends, samples = self._samples(epoch, window)
            chosen = samples[start - here.start : positions.stop - here.start]
            at = np.searchsorted(ends, chosen, side="right")
            shards.append(of_window[at])
            inside.append(chosen - np.where(at > 0, ends[at - 1], 0))
            start = here.stop
        return np.concatenate(shards), np.concatenate(inside)

    def window_of(self, position: int) -> range:
        """The positions in the window of this one."""
        return self._find(position)[2]

    def shards_of_window(self, position: int) -> list[int]:
        """The shards in the window of this position."""
        epoch, window, _ = self._find(position)
        return self._epoch(epoch)[0][window * self.window : (window + 1) * self.window].tolist()

    def _find(self, position: int) -> tuple[int, int, range]:
        """Epoch, window within the epoch, and the positions of that window."""
        epoch, offset = divmod(position, self.samples)
        _, ends = self._epoch(epoch)
        window = int(np.searchsorted(ends, offset, side="right"))
        first = epoch * self.samples
        return epoch, window, range(first + (int(ends[window - 1]) if window else 0), first + int(ends[window]))

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Permuted shards, and the end of each window within the epoch."""
        shards = permutation(len(self.sizes), self.seed, epoch, 0)
        ends = np.cumsum(self.sizes[shards])
        last = np.minimum(np.arange(self.window, len(shards) + self.window, self.window), len(shards)) - 1
        return shards, ends[last]

    def _make_window(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The window's shards, their ends in the concatenation, and its permuted samples."""
        shards = self._epoch(epoch)[0][window * self.window : (window + 1) * self.window]
        ends = np.cumsum(self.sizes[shards])
        # Window numbers start at 1 in the seed: 0 belongs to the shards' permutation.
        return shards, ends, permutation(int(ends[-1]), self.seed, epoch, window + 1)

    def __reduce__(self) -> tuple[type[Order], tuple[np.ndarray, int, int]]:
        return Order, (self.sizes, self.seed, self.window)  # without the caches
