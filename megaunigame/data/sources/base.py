"""Where samples come from, and where a stream of them stands."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

from megaunigame.config import StreamConfig
from megaunigame.errors import DataError


@dataclass(frozen=True)
class Found:
    """A sample whose place is known and whose bytes are not read yet."""

    key: str
    shard: str
    """File name of the shard, for messages."""
    read: Callable[[], Mapping[str, bytes]]
    """The raw fields. DataError or OSError: the sample is bad."""
    confirm: Callable[[], None]
    """Called when the sample turned out bad. DataError: it is not the sample's fault, the shard was changed."""


class Source(Protocol):
    """Samples at positions 0, 1, 2, ... without end."""

    location: str
    seed: int
    identity: dict[str, str | int]
    """Everything except the seed that decides which sample a position means, by names a message can use."""

    def find(self, position: int, attempt: int) -> Found:
        """The sample at `position`; for attempt k >= 1, its k-th substitute.

        Raises DataError when the place of the sample cannot be known (a broken index, a shard that was replaced or cannot
        be fetched): that ends the run.
        """
        ...


class Backend(Source):
    """A source that a recipe can ask for: `data.NAME.backend` is the name of the module in this folder that defines it."""

    exact: ClassVar[bool]
    """A position means the same sample in every run and every process: what mixes and filters need."""

    @classmethod
    @abstractmethod
    def open(cls, key: str, config: StreamConfig, seed: int) -> Self:
        """The one data set of `config`, which has no mix, without what `config.where` leaves out (never given unless `exact`).

        `key` is its place in the recipe, for messages. Raises ConfigError or DataError: shards that are not there or not
        whole, settings that cannot be met.
        """


@dataclass(frozen=True)
class Cursor:
    """Where a stream is: all that a checkpoint keeps of it. The fields are JSON values (`dataclasses.asdict`)."""

    seed: int
    position: int
    """Samples handed out to all ranks since the very first step, over epochs."""
    identity: dict[str, str | int]
    """`Source.identity` of the run that saved the cursor."""


class Stream:
    """A named source of samples, in a fixed order, from where this run starts. Positions are global, over epochs."""

    def __init__(self, name: str, source: Source, cursor: Cursor | None = None):
        """At `cursor`, or at the beginning. Raises DataError when its position would mean other samples than it did."""
        self.name = name
        self.source = source
        self.cursor = Cursor(source.seed, 0, source.identity) if cursor is None else cursor
        saved = {"seed": self.cursor.seed, **self.cursor.identity}
        given = {"seed": source.seed, **source.identity}
        for what in {**saved, **given}:
            if saved.get(what) != given.get(what):
                raise DataError(
                    f"Stream {name!r}: the checkpoint was made with {what} {saved.get(what, 'not set')}, this run has "
                    f"{given.get(what, 'not set')} ({source.location}). Give the same shards, seed, window, filters and mix to "
                    "resume exactly, or start anew with checkpoint.resume=never."
                )
