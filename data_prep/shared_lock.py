"""A lock for work that several runs, on any nodes that see the folder, must not do at once.

The lock is a file that its holder made and touches every few seconds. It is abandoned when its process on this node is gone
(the kernel keeps an advisory lock for it and for its children), or when it has not been touched for a minute: advisory locks
of network file systems are unreliable, clocks of nodes differ, so only the change of its time counts. Where a file system has
no advisory locks, or grants them to everybody, the minute counts on one node too.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import threading
import time
from pathlib import Path

BEAT = 5.0
"""Seconds between two touches."""
ABANDONED_AFTER = 60.0
"""Seconds without a touch."""
HELD = (errno.EACCES, errno.EAGAIN)
"""What a lock that another process has is answered with; any other error means that the system has no such locks."""

log = logging.getLogger(__name__)


class SharedLock:
    def __init__(self, path: Path):
        self.path = path
        self.file = -1
        """Descriptor while this process holds the lock; a child that inherits it keeps the lock when we die."""
        self._end = threading.Event()
        self._touched: int | None = None
        self._since = time.monotonic()

    def take(self) -> bool:
        """Whether this process now holds the lock. An abandoned one is removed, and can be taken at the next call."""
        try:
            self.file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        except FileExistsError:
            abandoned = self._abandoned()
            if abandoned:
                self._remove(abandoned)
            return False
        _locked(self.file, fcntl.LOCK_EX)  # before the name: nobody takes a lock without a name for that of a dead process
        os.write(self.file, f"{socket.gethostname()} {os.getpid()}".encode())
        self._end = threading.Event()
        threading.Thread(target=self._touch, args=(self._end,), daemon=True).start()
        return True

    def release(self) -> None:
        self._end.set()
        if self._inode() == os.fstat(self.file).st_ino:
            self.path.unlink(missing_ok=True)
        os.close(self.file)
        self.file = -1

    def holder(self) -> str:
        """The process that holds the lock, as "HOST, process 123"; "another process" while it is taken or released."""
        host, _, process = self._content().partition(" ")
        return f"{host}, process {process}" if process else "another process"

    def _touch(self, end: threading.Event) -> None:
        told = False
        while not end.wait(BEAT):
            try:
                os.utime(self.path)
            except FileNotFoundError:  # released, or taken for abandoned when this process was suspended
                return
            except OSError as error:  # a file system that is away for a moment (ESTALE, EIO) may come back
                if not told:
                    log.warning("The lock %s cannot be touched (%s); it is tried again and again.", self.path, error)
                told = True

    def _abandoned(self) -> int:
        """The inode of a lock that nobody holds; 0: somebody does."""
        try:
            file = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return 0
        try:
            stat = os.fstat(file)
            free = self._is_free(file)
        finally:
            os.close(file)
        touched = stat.st_mtime_ns
        here = self._content().partition(" ")[0] == socket.gethostname()
        if touched != self._touched:
            self._touched, self._since = touched, time.monotonic()
        late = time.monotonic() - self._since > ABANDONED_AFTER
        gone = late if free is None else free and (here or late)
        return stat.st_ino if gone else 0

    def _is_free(self, file: int) -> bool | None:
        """Whether nobody has the advisory lock of the open file; None: they do not work here."""
        free = _locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not free:
            return free
        try:
            second = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return False  # released in this moment
        try:
            return True if _locked(second, fcntl.LOCK_EX | fcntl.LOCK_NB) is False else None
        finally:
            os.close(second)

    def _remove(self, inode: int) -> None:
        if self._inode() != inode:
            return
        aside = self.path.with_name(f"{self.path.name}.{socket.gethostname()}-{os.getpid()}")
        try:
            os.rename(self.path, aside)  # of several processes that do this, one has a file to rename
        except FileNotFoundError:
            return
        aside.unlink()

    def _inode(self) -> int:
        try:
            return self.path.stat().st_ino
        except FileNotFoundError:
            return 0

    def _content(self) -> str:
        try:
            return self.path.read_text()
        except FileNotFoundError:
            return ""


def _locked(file: int, how: int) -> bool | None:
    """Lock the open file; False when another process has it, None when its file system has no such locks."""
    try:
        fcntl.flock(file, how)
    except OSError as error:
        return False if error.errno in HELD else None
    return True
