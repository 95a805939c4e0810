"""`backend: webdataset`: tars read front to back through anything webdataset can open, `pipe:` commands included.

For data without an index, or from a command. Limits compared with an indexed stream:

- Every loader worker of every rank samples shards with replacement. There are no epochs: after as many samples as the data
  set has, about 63 % of the shards have been seen, some more than once. Two workers may read the same shard.
- Resuming is statistical, not exact. The cursor counts samples as for any stream, but does not identify one: a resumed run
  samples other shards than the run it continues, from the same distribution, and starts with an empty shuffle buffer.
- The sequence repeats exactly only for the same cursor, number of ranks, batch and number of workers.
- Filters and mixes need an index.

Kept: ranks stay in lockstep, because readers are endless; bad samples and shards are counted and replaced.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

import webdataset

from megaunigame.config import StreamConfig
from megaunigame.data.decode import META_FIELD
from megaunigame.data.shards.foreign import FirstSamples, pack_command
from megaunigame.data.shards.remote import is_url
from megaunigame.data.shards.unfinished import check_finished
from megaunigame.data.shards.urls import reason_of, shown
from megaunigame.data.sources.base import Backend, SampleRef
from megaunigame.errors import ConfigError, DataError
from megaunigame.randomness import derive
from megaunigame.storage.foreign_text import one_line
from megaunigame.storage.plain_names import readable


class Pipe(Backend):
    """An endless source without random access: `find` returns the reader's next sample and ignores the position.

    The first position requested in a process seeds its reader. Ranks, workers and resumed runs begin at different positions,
    so they sample different shards.
    """

    exact = False

    def __init__(self, urls: str, seed: int, shuffle_buffer: int):
        """`urls` as webdataset takes them: braces, `::` between several, `pipe:COMMAND`.

        Raises ConfigError, and DataError for tars in a folder that data_prep has not finished.
        """
        self.urls = [url for url in webdataset.shardlists.expand_urls(urls) if url]
        if not self.urls:
            raise ConfigError(f"shards={urls!r} names no tar. Write for example 'pipe:cat data/train-{{000000..000099}}.tar'.")
        if len(self.urls) > 1:  # one tar by its name is meant as it is
            for folder in sorted({Path(url).parent for url in self.urls if not is_url(url) and not url.startswith("pipe:")}):
                check_finished(folder)
        self.location = shown(urls)
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.identity: dict[str, str | int] = {"backend": "webdataset"}
        self._process = 0
        self._reader: Iterator[SampleRef] = iter(())

    @classmethod
    def open(cls, key: str, config: StreamConfig, seed: int) -> Pipe:
        return cls(config.shards, seed, config.shuffle_buffer)

    def find(self, position: int, attempt: int) -> SampleRef:
        if self._process != os.getpid():
            self._process = os.getpid()
            self._reader = self._read(derive(self.seed, position))
        return next(self._reader)

    def _read(self, seed: int) -> Iterator[SampleRef]:
        """Samples in shuffled order; a failure is yielded at once, so that a source with only failures is noticed."""
        rng = random.Random(seed)
        buffer: list[SampleRef] = []
        for ref in self._sampled(seed):
            if not ref.key:
                yield ref
                continue
            buffer.append(ref)
            if len(buffer) >= self.shuffle_buffer:
                chosen = rng.randrange(len(buffer))
                buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
                yield buffer.pop()

    def _sampled(self, seed: int) -> Iterator[SampleRef]:
        """Whole shards, sampled with replacement, endless. Without a key: a shard that cannot be read to its end."""
        first = FirstSamples(self.location)
        for source in webdataset.ResampledShards(self.urls, seed=seed, worker_seed=lambda: 0, deterministic=True):
            shard, failure = shown(source["url"]), "it holds no sample"
            try:
                for sample in webdataset.tarfile_samples([source]):
                    fields = {readable(name): data for name, data in sample.items() if not name.startswith("__")}
                    key = readable(sample["__key__"])
                    first.add(fields.keys())
                    read: Callable[[], Mapping[str, bytes]] = partial(dict, fields)
                    if META_FIELD not in fields:
                        read = partial(_refuse_raw, key, shard, fields)
                    yield SampleRef(key, shard, read, lambda: None)
                    failure = ""
                first.check()
            except Exception as error:  # a tar, a pipe, curl, ...: each has other error types
                failure = reason_of(error)
            if failure:
                yield SampleRef("", shard, partial(_refuse, shard, failure), lambda: None)


def _refuse_raw(key: str, shard: str, fields: Mapping[str, bytes]) -> NoReturn:
    raise DataError(
        f"Sample {key!r} of {shard} has no json, which holds captions and conversations; its fields are "
        f"{one_line(', '.join(fields))}. Pack the tars, then train on the packed folder: {pack_command(shard)}"
    )


def _refuse(shard: str, reason: str) -> NoReturn:
    raise DataError(f"{shard} cannot be read to its end ({reason}).")
