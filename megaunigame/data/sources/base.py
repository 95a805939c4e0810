"""Sources of samples, and streams: sources with a cursor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from megaunigame.config import StreamConfig
from megaunigame.errors import DataError
from megaunigame.pictures.rules import DEFAULT_RULES, PictureRules
from megaunigame.step.amounts import Amounts


@dataclass(frozen=True)
class SampleRef:
    """Reference to a sample whose bytes are not read yet."""

    key: str
    shard: str
    """File name of the shard, for messages."""
    read: Callable[[], Mapping[str, bytes]]
    """The raw fields. LostShard: nothing of the shard can be read now; another DataError, or OSError: the sample is bad."""
    confirm: Callable[[], None]
    """Called for a bad sample. DataError: the shard has changed, which is not an error of the sample. LostShard: it is gone."""


class Source(Protocol):
    """Samples at positions 0, 1, 2, ..., endless."""

    location: str
    seed: int
    identity: dict[str, str | int]
    """Everything besides the seed that determines which sample is at a position; names are for messages."""
    epoch: int | None
    """Samples of an epoch; None: not known."""

    def find(self, position: int, attempt: int) -> SampleRef:
        """The sample at `position`; for attempt k >= 1, its k-th substitute, which depends on seed, position and k only.

        Raises LostShard when its shard cannot be reached now, and DataError when it cannot be located for another reason (a
        broken index, a shard that was replaced): that ends the run.
        """
        ...

    def amounts(self, positions: range, tokenizer: str) -> Amounts:
        """What the samples at these positions hold, not their substitutes; reads indexes only. Raises as `find` does.

        `tokenizer` (`tokenizer_hash`): whose counts of tokens are wanted, where there are any."""
        ...

    def uncounted(self, tokenizer: str) -> list[str]:
        """Where its data sets are that have no counts of the tokens of this tokenizer. Raises DataError for damaged ones."""
        ...


class Backend(Source):
    """A source for recipes: `data.NAME.backend` is the name of its module in this folder."""

    epoch: int | None = None
    exact: ClassVar[bool]
    """A position is the same sample in every run and process; mixes and filters need this."""
    measures: ClassVar[bool] = False
    """Whether it has `amounts`, the same on every rank; `loader.balance` needs this."""

    @classmethod
    @abstractmethod
    def open(cls, key: str, config: StreamConfig, seed: int) -> Backend:
        """The data set of `config` (not a mix), filtered by `config.where` (given only if `exact`).

        `key` is its key in the recipe, for messages. Raises ConfigError or DataError: missing or incomplete shards, settings
        that cannot be satisfied.
        """

    def uncounted(self, tokenizer: str) -> list[str]:
        return [self.location]

    def amounts(self, positions: range, tokenizer: str) -> Amounts:
        raise NotImplementedError(f"{type(self).__name__} does not say what samples hold; `measures` is False.")


@dataclass(frozen=True)
class Cursor:
    """Position of a stream: all that a checkpoint keeps of it. The fields are JSON values (`dataclasses.asdict`)."""

    seed: int
    position: int
    """Samples given to all ranks since the first step, over epochs."""
    identity: dict[str, str | int]
    """`Source.identity` of the run that saved the cursor."""


class Stream:
    """A named source with the cursor at which this run starts. Positions are global, over epochs."""

    def __init__(self, name: str, source: Source, cursor: Cursor | None = None, rules: PictureRules = DEFAULT_RULES):
        """At `cursor`, or at the beginning; pictures are read by `rules`.

        Raises DataError when the source would give other samples at its position."""
        self.name = name
        self.source = source
        self.rules = rules
        self.cursor = Cursor(source.seed, 0, source.identity) if cursor is None else cursor
        saved = {"seed": self.cursor.seed, **self.cursor.identity}
        given = {"seed": source.seed, **source.identity}
        for what in {**saved, **given}:
            if saved.get(what) != given.get(what):
                raise DataError(
                    f"Stream {name!r}: the checkpoint was made with {what} {saved.get(what, 'not set')}, this run has "
                    f"{given.get(what, 'not set')} ({source.location}). Give the same shards, seed, window, filters and mix to "
                    "resume exactly; type checkpoint.reset_data=true to go on with other data, from their beginning; or start "
                    "again with checkpoint.resume=never."
                )
