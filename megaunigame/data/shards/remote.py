"""The shards of a folder at a URL, read through the cache of the node."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import queue
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from megaunigame.data.shards.cache import RemoteFile, ShardCache
from megaunigame.data.shards.manifest import ListedShard
from megaunigame.data.shards.table import index_name
from megaunigame.data.shards.token_counts import counts_bytes, counts_name, is_content
from megaunigame.data.shards.urls import is_http
from megaunigame.errors import DataError

log = logging.getLogger(__name__)


def is_url(location: str) -> bool:
    return "://" in location


class CachedFiles:
    """The files of a remote folder with a manifest, which has their sizes and the sha256 of every index and of every tar (not
    of the tars, if an earlier version of data_prep wrote it)."""

    def __init__(self, url: str, shards: Sequence[ListedShard], cache: ShardCache):
        # Another version of the data set at the same URL has other files.
        hashes = [s.index_sha256 if s.sha256 is None else [s.index_sha256, s.sha256] for s in shards]
        version = json.dumps([url, hashes])
        self.url, self.folder = url, hashlib.sha256(version.encode()).hexdigest()[:16]
        """The folder is that of the cache."""
        self.cache = cache
        self.tars = [self._remote(s.file, size=s.bytes, sha256=s.sha256) for s in shards]
        self.indices = [self._remote(index_name(s.file), sha256=s.index_sha256) for s in shards]
        self._requests: queue.SimpleQueue[Sequence[int]] | None = None
        self._process = 0

    def _remote(self, file: str, size: int | None = None, sha256: str | None = None) -> RemoteFile:
        place = quote(file) if is_http(self.url) else file
        return RemoteFile(f"{self.url}/{place}", f"{self.folder}/{file}", size, sha256)

    def largest(self, shards: int) -> int:
        """Bytes of the largest `shards` tars."""
        return sum(sorted((tar.size or 0 for tar in self.tars), reverse=True)[:shards])

    def open_tar(self, shard: int) -> io.FileIO:
        return self.cache.open(self.tars[shard])

    def read_index(self, shard: int) -> bytes:
        """As the manifest describes it: what was damaged in the cache is downloaded once more."""
        index = self.indices[shard]
        with self.cache.open(index) as file:
            content = file.readall()
        if hashlib.sha256(content).hexdigest() == index.sha256:
            return content
        log.warning("%s is damaged in the cache: it is downloaded once more.", index.name)
        self.cache.remove(index)
        with self.cache.open(index) as file:
            return file.readall()

    def open_counts(self, tokenizer: str, sha256: str, samples: int) -> io.FileIO:
        """The counts of the tokens of a tokenizer, as the manifest describes them. Raises DataError when they cannot be had."""
        counts = self._remote(counts_name(tokenizer), counts_bytes(samples), sha256)
        file = self.cache.open(counts)
        if is_content(file, sha256):
            return file
        log.warning("%s is damaged in the cache: it is downloaded once more.", counts.name)
        file.close()
        self.cache.remove(counts)
        return self.cache.open(counts)

    def check_unchanged(self, shard: int) -> None:
        """A file in the cache does not change; its download was compared with the manifest."""

    def prefetch(self, shards: Sequence[int]) -> None:
        """Download the shards in a thread; the latest request replaces earlier ones."""
        if self._requests is None or self._process != os.getpid():  # threads do not survive a fork
            self._requests, self._process = queue.SimpleQueue(), os.getpid()
            threading.Thread(target=self._fetch_ahead, args=(self._requests,), daemon=True).start()
        self._requests.put(shards)

    def _fetch_ahead(self, requests: queue.SimpleQueue[Sequence[int]]) -> None:
        while True:
            for shard in requests.get():
                if not requests.empty():
                    break
                try:
                    self.cache.fetch_ahead(self.tars[shard])
                except (DataError, OSError) as error:  # opening the shard tries again, and raises
                    log.warning("Fetching ahead failed: %s", error)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_requests": None}
