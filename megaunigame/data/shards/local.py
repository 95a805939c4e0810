"""The shards of a folder on a local or network file system."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

from megaunigame.data.shards.table import LARGEST_INDEX, index_name
from megaunigame.data.shards.token_counts import counts_name, open_counts
from megaunigame.errors import DataError, LostShard
from megaunigame.storage.untrusted_json import read_within

PUT_BACK = "Put it back with its times (cp -p, rsync -a)."


class LocalFiles:
    """Shards on a local or network file system. Sizes and modification times are recorded when opened."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths
        self._began_with = [_signature(path.stat()) for path in paths]

    def size(self, shard: int) -> int:
        return self._began_with[shard][0]

    def open_tar(self, shard: int) -> io.FileIO:
        """The tar, complete and unchanged since the run began. Raises LostShard, and DataError for one that has changed."""
        path = self.paths[shard]
        try:
            file = io.FileIO(path, "r")
            now = os.fstat(file.fileno())
        except OSError as error:
            raise LostShard(f"{path} can no longer be opened ({error}). {PUT_BACK}", path.name) from error
        self._compare(shard, now)
        return file

    def read_index(self, shard: int) -> bytes:
        """The content of its idx.json. Raises LostShard."""
        path = index_name(self.paths[shard])
        try:
            return read_within(Path(path), LARGEST_INDEX)
        except OSError as error:
            raise LostShard(f"{path} can no longer be read ({error}). {PUT_BACK}", self.paths[shard].name) from error

    def open_counts(self, tokenizer: str, sha256: str, samples: int) -> io.FileIO:
        """The counts of the tokens of a tokenizer. Raises DataError unless they are what dataset.json describes."""
        return open_counts(self.paths[0].with_name(counts_name(tokenizer)), sha256)

    def prefetch(self, shards: Sequence[int]) -> None:
        """Does nothing: local shards need no download."""

    def check_unchanged(self, shard: int) -> None:
        """Raises DataError when the tar has changed since the run began, LostShard when it is gone."""
        path = self.paths[shard]
        try:
            now = path.stat()
        except OSError as error:
            raise LostShard(f"{path} disappeared during this run ({error}). {PUT_BACK}", path.name) from error
        self._compare(shard, now)

    def _compare(self, shard: int, now: os.stat_result) -> None:
        size, changed = self._began_with[shard]
        if _signature(now) != (size, changed):
            raise DataError(
                f"{self.paths[shard]} was replaced or written to while this run reads it: it had {size:,} bytes when the run "
                f"began and has {now.st_size:,} now, or its modification time changed. Which samples the run has seen is not "
                "known anymore. Put the old shard back and resume, or start again with checkpoint.resume=never."
            )


def _signature(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns
