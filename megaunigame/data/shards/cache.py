"""Keeps shards of a URL on a disk of the node while they are needed.

All processes of a node share one folder of whole files. Each rule is enforced by an advisory lock that the kernel releases
when its process dies:

- A file is downloaded by one process, under the lock `NAME.lock`; the others wait for it. It gets its name when complete.
- A reader holds a shared lock on the file; only a file without one is evicted, least recently used first.

The folder must be on a local disk: locks of network file systems are unreliable. What a server sends is not trusted: names
stay in the folder, sizes are bounded, hashes are compared where the manifest has them. What is in the folder is.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.callbacks import Callback

from megaunigame.data.shards.http import pieces
from megaunigame.data.shards.manifest import LARGEST_MANIFEST
from megaunigame.data.shards.retrying import FIRST_PAUSE, OtherContentError, attempt
from megaunigame.data.shards.table import LARGEST_INDEX
from megaunigame.data.shards.token_counts import ENDING
from megaunigame.data.shards.urls import FinalError, is_http, shown
from megaunigame.errors import DataError
from megaunigame.storage.pending import sha256_of

GIGABYTE = 10**9

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    url: str
    name: str
    """Path below the cache's folder."""
    size: int | None = None
    """Bytes, if known before."""
    sha256: str | None = None

    @property
    def most(self) -> int:
        """Bytes after which a download is cut off."""
        return LARGEST_INDEX if self.size is None else self.size


class ShardCache:
    """A folder on the node that holds at most about `gigabytes` of downloaded files.

    The bound is exceeded, with a warning, only when all files in the folder are being read. Only one subfolder of `folder` is
    ever used.
    """

    def __init__(self, folder: str | Path, gigabytes: float, first_pause: float = FIRST_PAUSE):
        self.folder = Path(folder) / "megaunigame-shards"
        self.bound = int(gigabytes * GIGABYTE)
        """Bytes."""
        self.first_pause = first_pause

    def read(self, url: str) -> bytes:
        """The content of a small file, not kept. Raises DataError."""

        def read() -> bytes:
            if is_http(url):
                return b"".join(pieces(url, LARGEST_MANIFEST))
            _check_size(_file_system(url).size(url), LARGEST_MANIFEST)
            return bytes(_file_system(url).cat_file(url))

        return attempt(url, read, self.first_pause)

    def open(self, wanted: RemoteFile) -> io.FileIO:
        """The file, open for reading; waits for its download. It is not evicted while open.

        Raises DataError when it cannot be downloaded, or has another size or hash.
        """
        path = self.folder / wanted.name
        while (file := _opened(path, wanted.size)) is None:
            with _locked(_lock_of(path)):
                if not _whole(path, wanted.size):  # else another process was faster
                    self._make_room(wanted.size or 0, needed=True)
                    self._download(wanted, path)
        return file

    def remove(self, damaged: RemoteFile) -> None:
        """Remove a file whose content is not that of its download; who reads it has it open still."""
        path = self.folder / damaged.name
        with _locked(_lock_of(path)):
            path.unlink(missing_ok=True)

    def fetch_ahead(self, wanted: RemoteFile) -> None:
        """Download a file that will be opened soon, if there is room and no other process does. Raises DataError."""
        path = self.folder / wanted.name
        with _locked(_lock_of(path), wait=False) as mine:
            if mine and not _whole(path, wanted.size) and self._make_room(wanted.size or 0, needed=False):
                self._download(wanted, path)

    def _download(self, wanted: RemoteFile, path: Path) -> None:
        """The caller holds the file's lock."""
        part = _part_of(path, wanted.size)

        def download() -> None:
            _write(wanted, part)
            got = part.stat().st_size
            if wanted.size not in (None, got):
                raise OtherContentError(f"has {got:,} bytes, dataset.json says {wanted.size:,}")
            if wanted.sha256 is not None and sha256_of(part) != wanted.sha256:
                raise OtherContentError("is not the file that dataset.json describes (its sha256 differs)")

        try:
            part.touch()
            attempt(wanted.url, download, self.first_pause)
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int, needed: bool) -> bool:
        """Evict files that no process reads, least recently used first, until `size` more bytes fit; whether they do."""
        with _locked(self.folder / "eviction.lock"):
            kept: list[tuple[int, int, Path]] = []
            total = size
            for path in self.folder.rglob("*"):
                if path.suffix == ".part":
                    total += _claimed(path)
                elif path.suffix in (".tar", ".json", ENDING):
                    stat = path.stat()
                    kept.append((stat.st_mtime_ns, stat.st_size, path))
                    total += stat.st_size
            for _, length, path in sorted(kept):
                if total <= self.bound:
                    return True
                if _removed(path):
                    total -= length
        if total > self.bound and needed:
            log.warning(
                "%s holds more than %g GB: every shard in it is being read. Raise `cache.gigabytes`.",
                self.folder,
                self.bound / GIGABYTE,
            )
        return total <= self.bound


def _write(wanted: RemoteFile, part: Path) -> None:
    """Write the file at a URL to `part`, and not more than it may have."""
    if not is_http(wanted.url):
        _file_system(wanted.url).get_file(wanted.url, str(part), callback=_Bound(wanted))
        return
    with open(part, "wb") as file:
        for piece in pieces(wanted.url, wanted.most):
            file.write(piece)


class _Bound(Callback):
    """Ends a download of fsspec that goes on for too long."""

    def __init__(self, wanted: RemoteFile):
        super().__init__()
        self.wanted = wanted

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        _check_size(self.value, self.wanted.most)


def _check_size(size: int | None, most: int) -> None:
    if size is not None and size > most:
        raise FinalError(f"has {size:,} bytes or more, {most:,} are allowed")


def _file_system(url: str) -> Any:
    """Made in every process: connections do not survive a fork. fsspec caches one per process and kind."""
    try:
        return fsspec.core.url_to_fs(url)[0]
    except ImportError as error:
        raise DataError(
            f"{shown(url)} needs a package that is not installed ({error}). pip install 'megaunigame[remote]'"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{shown(url)}: {shown(str(error))}. Legal are paths, s3://, gs://, https:// and other URLs fsspec knows."
        ) from error


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _part_of(path: Path, size: int | None) -> Path:
    """The name has the full size: other processes count it during the download. `manifest.LONGEST_FILE` leaves room for it."""
    return path.with_name(f"{path.name}.{size or 0}.part")


@contextmanager
def _locked(lock: Path, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock; without `wait`, yields False when another process has it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough: a process forked meanwhile also has the file


def _whole(path: Path, size: int | None) -> bool:
    return path.is_file() and size in (None, path.stat().st_size)


def _opened(path: Path, size: int | None) -> io.FileIO | None:
    """The file under a shared lock, marked as just used; None when it is not there."""
    try:
        file = io.FileIO(path)
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    stat = os.fstat(file.fileno())
    if stat.st_nlink == 0 or size not in (None, stat.st_size):  # removed just before the lock, or not ours
        file.close()
        return None
    os.utime(path)
    return file


def _removed(path: Path) -> bool:
    """Remove a file unless a process reads it; returns whether it did."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        path.unlink()
    return True


def _claimed(part: Path) -> int:
    """Bytes a download will take; 0 when its process has died, and the partial file is removed."""
    name, size, _ = part.name.rsplit(".", 2)
    with _locked(part.with_name(name + ".lock"), wait=False) as free:
        if free:
            part.unlink(missing_ok=True)
        return 0 if free else int(size)
