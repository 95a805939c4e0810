"""Settings of the data: streams, mixes, caches, the loader."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megaunigame.errors import ConfigError
from megaunigame.pictures.rules import MAX_PIXELS, WHITE, ground_from
from megaunigame.settings import above, at_least, between, one_of

STOP, SUBSTITUTE = "stop", "substitute"


@dataclass
class CacheConfig:
    """Where the shards of a URL are kept on each node while they are needed, and the shards of a `source` for good; all ranks
    of the node share it."""

    folder: str = ""
    """Must be given when shards are URLs (then on a local disk), and for a `source` (then better shared by all nodes)."""
    gigabytes: float = above(0, 100.0)
    """The least recently used shards make room for new ones. Must hold two windows."""


@dataclass
class MixedConfig:
    """One data set of a mix."""

    shards: str = ""
    """As `data.NAME.shards`."""
    source: str = ""
    """As `data.NAME.source`."""
    image_root: str = ""
    """As `data.NAME.image_root`."""
    split: str = ""
    """As `data.NAME.split`."""
    weight: int = above(0, 1)
    """Of every (sum of the weights) samples of the stream, this many come from here."""
    window: int = above(0, 8)
    """As `data.NAME.window`."""
    where: list[str] = field(default_factory=list)
    """As `data.NAME.where`."""

    def check(self, path: str) -> None:
        if bool(self.shards) == bool(self.source):
            raise ConfigError(
                f"{path} needs either {path}.shards (a folder or URL) or {path}.source (a data set to pack), and not both."
            )
        _check_source(self, path)
        _check_where(self.where, path)


@dataclass
class StreamConfig:
    shards: str = ""
    """Folder of shards that data_prep wrote (any WebDataset tars work; a missing index is built), or its URL."""
    source: str = ""
    """Instead of `shards`: a JSON file in the LLaVA form, tars, or a Hugging Face folder (parquet, arrow). It is packed into
    `cache.folder` when a run first uses it."""
    image_root: str = ""
    """Folder of the pictures of a `source` that names files; empty: where the JSON file is."""
    split: str = ""
    """Of a `source` with several."""
    window: int = above(0, 8)
    """Shards shuffled together; only these are open at a time."""
    where: list[str] = field(default_factory=list)
    """Filters, all of which a sample must pass: `COLUMN OP NUMBER` on numbers of its JSON, `has FIELD`, or `not in FILE`
    (a `quarantine.jsonl`)."""
    mix: dict[str, MixedConfig] = field(default_factory=dict)
    """Instead of `shards`: several data sets by weight."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    backend: str = "index"
    """Module name in megaunigame/data/sources: `index`; or `webdataset` for tars without random access
    (`pipe:...`), with weaker guarantees: docs/streaming.md."""
    shuffle_buffer: int = above(0, 1000)
    """Samples shuffled together by a loader worker, for `webdataset`."""
    ground: str = WHITE
    """What transparent pictures lie on: white, black, gray or '#rrggbb'."""
    max_pixels: int = at_least(1, MAX_PIXELS)
    """Width x height of the largest picture that is decoded; larger ones are bad samples."""

    def check(self, path: str) -> None:
        if sum(map(bool, (self.shards, self.source, self.mix))) != 1:
            instead = (
                f" Type {path}={{source: {self.source}, cache: {{folder: FOLDER}}}} to replace all." if self.source else ""
            )
            raise ConfigError(
                f"{path} needs one of `shards` (a folder or URL), `source` (a data set to pack on first use) and `mix` (data "
                f"sets by weight), and not both.{instead}"
            )
        _check_source(self, path)
        if (self.source or any(part.source for part in self.mix.values())) and not self.cache.folder:
            raise ConfigError(
                f"{path}.cache.folder is missing: what is packed of a `source` is kept there. Type for example "
                f"{path}.cache.folder=shards/packed."
            )
        if self.source and self.backend != "index":
            raise ConfigError(f"{path}: a `source` is packed into shards with an index. Leave out {path}.backend.")
        _check_where(self.where, path)
        ground_from(f"{path}.ground", self.ground)
        if self.mix and (self.where or self.window != StreamConfig.window):
            raise ConfigError(f"{path}: give `where` and `window` to the data sets of the mix, as {path}.mix.NAME.where=[...].")


def _check_source(data: MixedConfig | StreamConfig, path: str) -> None:
    for name, given in (("image_root", data.image_root), ("split", data.split)):
        if given and not data.source:
            raise ConfigError(f"{path}.{name}={given} belongs to {path}.source, which is not given. Leave it out.")


def _check_where(rules: list[Any], path: str) -> None:
    for rule in rules:
        if not isinstance(rule, str):  # OmegaConf lets mappings through
            raise ConfigError(f"{path}.where must be a list of text such as 'clip_similarity >= 0.28'; got {rule!r}.")


@dataclass
class LoaderConfig:
    workers: int = at_least(0, 2)
    """Processes of each rank that read and decode samples; 0: the rank does it itself, between its steps."""
    prefetch: int = above(0, 4)
    """Micro-batches that each worker prepares ahead."""
    balance: bool = False
    """Deal the rows of an optimizer step over its micro-steps and ranks by their length, so that ranks need not wait for the
    slowest. Needs `model.pack_tokens`; lengths are exact with counts of `megaunigame prepare tokens`, else estimated. A rank
    then has fewer understand rows than objectives ask for, or up to a quarter more (at least one)."""
    max_bad_fraction: float = at_least(0, 0.001)
    """The run stops when more than this fraction of a stream's samples had to be replaced."""
    lost_shard: str = one_of([STOP, SUBSTITUTE], STOP)
    """What follows when a shard that disappeared during the run does not come back: `stop` ends the run on all ranks;
    `substitute` goes on, and samples of other shards take the places of its samples, which count for `max_bad_fraction`."""
    lost_shard_wait: float = between(0, 0.7, 0.3)
    """Part of `engine.timeout_minutes` for which a lost shard is tried again before that; the other ranks wait meanwhile."""
    slow_seconds: float = above(0, 60.0)
    """A rank that waits longer than this for its data says so, with what its workers read."""
    max_dummy_fraction: float = between(0, 1, 0.5)
    """The run stops when more than this fraction of a term's rows are dummies, because samples lack what the rows need, and
    when a term gets no row at all; 1: never."""
    max_cut_fraction: float = between(0, 1, 0.5)
    """The run stops when more than this fraction of a term's rows had text that did not fit into model.max_length."""

    def check(self, path: str) -> None:
        if self.balance and self.lost_shard == SUBSTITUTE:
            raise ConfigError(
                f"{path}.balance=true needs every rank to read the same indexes, and with {path}.lost_shard={SUBSTITUTE} a "
                f"rank goes on without those it cannot reach. Type {path}.lost_shard={STOP}, or {path}.balance=false."
            )
