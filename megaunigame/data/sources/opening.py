"""From the recipe's `data` section to streams."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping

from megaunigame.config import StreamConfig
from megaunigame.data.sources.base import Backend, Cursor, Source, Stream
from megaunigame.data.sources.blend import Blend
from megaunigame.errors import ConfigError
from megaunigame.pictures.rules import PictureRules, ground_from
from megaunigame.randomness import derive
from megaunigame.registry import find


def open_stream(name: str, config: StreamConfig, seed: int, cursor: Cursor | None = None) -> Stream:
    """The stream `data.NAME` of a recipe, at `cursor` or at its beginning.

    Raises ConfigError or DataError: an unknown backend, missing or incomplete shards, filters that nothing passes, a cursor of
    other data.
    """
    rules = rules_of(name, config)
    return Stream(name, _source(f"data.{name}", config, seed), cursor, rules)


def rules_of(name: str, config: StreamConfig) -> PictureRules:
    """How pictures of the stream `data.NAME` are read. Raises ConfigError for a ground that is not legal."""
    return PictureRules(ground_from(f"data.{name}.ground", config.ground), config.max_pixels)


def check_backend(key: str, config: StreamConfig) -> type[Backend]:
    """Raises ConfigError for an unknown backend, and for one that cannot do what the stream asks for."""
    try:
        backend = find("data.sources", config.backend, Backend)
    except ConfigError as error:
        raise ConfigError(f"{key}.backend: {error}") from error
    if (config.mix or config.where) and not backend.exact:
        raise ConfigError(
            f"{key}: mixes and filters need an index, which backend={config.backend} does without. Leave out one."
        )
    return backend


def check_measured(key: str, config: StreamConfig) -> None:
    """Raises ConfigError for a stream whose samples must be read before it is known what they hold."""
    if not check_backend(key, config).measures:
        raise ConfigError(
            f"loader.balance=true deals rows by what the index of a shard says of its samples, and {key}.backend="
            f"{config.backend} reads without an index. Pack the tars (`megaunigame prepare pack --help`) and leave out "
            f"{key}.backend, or type loader.balance=false."
        )


def estimated_lengths(streams: Mapping[str, Stream], tokenizer: str) -> str:
    """What to say of streams whose rows are dealt by estimates, because nobody has counted the tokens of their texts; empty:
    there are none. Raises DataError for damaged counts."""
    places = [place for stream in streams.values() for place in stream.source.uncounted(tokenizer)]
    if not places:
        return ""
    return (
        f"loader.balance: tokens of texts are estimated from their characters in {', '.join(dict.fromkeys(places))}. "
        "`megaunigame prepare tokens FOLDER --for RECIPE` counts them: ranks then wait less for the slowest."
    )


def _source(key: str, config: StreamConfig, seed: int) -> Source:
    backend = check_backend(key, config)
    if not config.mix:
        return backend.open(key, config, seed)
    sources: dict[str, Source] = {}
    for name, part in config.mix.items():
        one = dataclasses.replace(config, shards=part.shards, window=part.window, where=part.where, mix={})
        # Sources of the same size must not be visited in the same order.
        sources[name] = backend.open(f"{key}.mix.{name}", one, derive(seed, zlib.crc32(name.encode())))
    return Blend(sources, {name: part.weight for name, part in config.mix.items()}, seed)
