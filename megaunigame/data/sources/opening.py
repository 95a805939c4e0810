"""From the recipe's `data` section to streams."""

from __future__ import annotations

import zlib

from megaunigame.config import CacheConfig, MixedConfig, StreamConfig
from megaunigame.data.shards.cache import ShardCache
from megaunigame.data.shards.remote import is_url
from megaunigame.data.sources.base import Cursor, Source, Stream
from megaunigame.data.sources.blend import Blend
from megaunigame.data.sources.index import IndexedSource
from megaunigame.data.sources.webdataset import Pipe
from megaunigame.errors import ConfigError, UserError
from megaunigame.randomness import derive


def open_stream(name: str, config: StreamConfig, seed: int, cursor: Cursor | None = None) -> Stream:
    """The stream `data.NAME` of a recipe, at `cursor` or at its beginning.

    Raises ConfigError or DataError: shards that are not there or not whole, filters that cannot be met, a cursor of other
    data.
    """
    return Stream(name, _source(name, config, seed), cursor)


def _source(name: str, config: StreamConfig, seed: int) -> Source:
    if config.backend == "webdataset":
        return Pipe(config.shards, seed, config.shuffle_buffer)
    if not config.mix:
        return _indexed(f"data.{name}", config, config.cache, name, seed)
    sources: dict[str, Source] = {
        # Sources of the same size must not be visited in the same order.
        part: _indexed(f"data.{name}.mix.{part}", settings, config.cache, name, derive(seed, zlib.crc32(part.encode())))
        for part, settings in config.mix.items()
    }
    return Blend(sources, {part: settings.weight for part, settings in config.mix.items()}, seed)


def _indexed(key: str, config: StreamConfig | MixedConfig, cache: CacheConfig, stream: str, seed: int) -> IndexedSource:
    shard_cache = None
    if is_url(config.shards):
        if not cache.folder:
            raise ConfigError(
                f"{key}.shards={config.shards} is a URL: its shards need a folder on a disk of every node. Type for example "
                f"data.{stream}.cache.folder=LOCAL_DISK/shards (and data.{stream}.cache.gigabytes={cache.gigabytes:g})."
            )
        shard_cache = ShardCache(cache.folder, cache.gigabytes)
    try:
        return IndexedSource.open(config.shards, seed, config.window, config.where, shard_cache)
    except UserError as error:
        raise type(error)(f"{key}: {error}") from error
