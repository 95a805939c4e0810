"""`backend: index`: one data set as an endless source: its index, filters, and order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from megaunigame.config import StreamConfig
from megaunigame.data.shards.cache import ShardCache
from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.shards.remote import CachedFiles, is_url
from megaunigame.data.shards.urls import shown
from megaunigame.data.sources.base import Backend, SampleRef
from megaunigame.data.sources.filters import parse_filter, select
from megaunigame.data.sources.order import Order
from megaunigame.errors import ConfigError, UserError
from megaunigame.step.amounts import Amounts

NEAR = 4
"""Number of substitutes from the same window, whose shards are open; later ones are from the whole epoch."""


class IndexedSource(Backend):
    """Every sample that passes the filters once per epoch, in an order that is a pure function of the seed."""

    exact = True
    measures = True

    def __init__(self, index: ShardIndex, seed: int, window: int, where: Sequence[str] = ()):
        """`window` is in shards. Raises ConfigError for an illegal filter, DataError for one that nothing passes."""
        filters = [parse_filter(text) for text in where]
        self.index = index
        self.location = index.location
        self.seed = seed
        self.selection = select(index, filters) if filters else None
        self.order = Order(index.sizes if self.selection is None else self.selection.counts, seed, window)
        self.epoch = self.order.samples
        self.identity: dict[str, str | int] = {"window": window, "shards (index hash)": index.hash}
        if self.selection is not None:
            self.identity["where"] = " and ".join(map(str, filters))
            self.identity["samples that pass (hash)"] = self.selection.digest()
        self._near: range = range(0)
        """Positions of the current window."""

    @classmethod
    def open(cls, key: str, config: StreamConfig, seed: int) -> IndexedSource:
        cache = _cache(key, config) if is_url(config.shards) else None
        window = config.window
        try:
            open_shards = max(32, 3 * window) if cache is None else 2 * window + 1
            index = ShardIndex.open(config.shards, open_shards=open_shards, cache=cache)
            if cache is not None and isinstance(index.files, CachedFiles):
                needed = index.files.largest(2 * window)
                if needed > cache.bound:
                    raise ConfigError(
                        f"cache.gigabytes={cache.bound / 1e9:g} cannot hold two windows of {window} shards of "
                        f"{index.location}. Type cache.gigabytes={1.5 * needed / 1e9:.3g}, which also leaves room to fetch "
                        "ahead, or a smaller window."
                    )
            return cls(index, seed, window, config.where)
        except UserError as error:
            raise type(error)(f"{key}: {error}") from error

    def find(self, position: int, attempt: int) -> SampleRef:
        if position not in self._near:
            self._near = self.order.window_of(position)
            coming = self.order.shards_of_window(self._near.stop)
            self.index.files.prefetch([*self.order.shards_of_window(position), *coming])
        if attempt:
            epoch = range(*(self.order.samples * (position // self.order.samples + k) for k in (0, 1)))
            near = self._near if attempt <= NEAR else epoch
            drawn = np.random.SeedSequence([self.seed, position, attempt]).generate_state(1, np.uint64)
            position = near[int(drawn[0]) % len(near)]
        _, shard, i = self.order.locate(position)
        if self.selection is not None:
            i = self.selection.index(shard, i)
        confirm = partial(self.index.files.check_unchanged, shard)
        return SampleRef(self.index.key(shard, i), self.index.name(shard), partial(self._read, shard, i), confirm)

    def uncounted(self, tokenizer: str) -> list[str]:
        return [] if self.index.has_counts(tokenizer) else [self.location]

    def amounts(self, positions: range, tokenizer: str) -> Amounts:
        shards, inside = self.order.locate_all(positions)
        found = Amounts.empty(len(positions))
        for shard in np.unique(shards).tolist():
            at = np.flatnonzero(shards == shard)
            i = inside[at] if self.selection is None else self.selection.indices(shard, inside[at])
            found.put(at, self.index.amounts(shard, tokenizer).take(i))
        return found

    def _read(self, shard: int, i: int) -> Mapping[str, bytes]:
        return self.index.read(shard, i)[1]


def _cache(key: str, config: StreamConfig) -> ShardCache:
    """Cache for shards of a URL; one for all data sets of a mix."""
    if not config.cache.folder:
        stream = key.partition(".mix.")[0]
        raise ConfigError(
            f"{key}.shards={shown(config.shards)} is a URL: its shards need a folder on a disk of every node. Type for example "
            f"{stream}.cache.folder=LOCAL_DISK/shards (and {stream}.cache.gigabytes={config.cache.gigabytes:g})."
        )
    return ShardCache(config.cache.folder, config.cache.gigabytes)
