"""One run at a time in a run folder.

`running.json` has a record lock of the process of rank 0, and says who that is; a thread writes a sign of life into it every
`BEAT_SECONDS`. A folder is taken over only from a process that is dead:

- on the same machine, when the lock is free and no process has its number and its time of start;
- on another machine, when its lock is free and it has given no sign of life for `SILENCE_SECONDS`. A free lock alone proves
  nothing there: not all network file systems tell other machines of it. A lock that is held proves a run, or a file server
  that has not noticed its end: then somebody must look, and delete the file. Ages are differences of times that the file
  system itself writes, and a claim that finds a fresh entry waits for the next sign.

Where the file system has no locks, two launches of the same moment may both find the folder free: each reads its entry again
after `CONFIRM_SECONDS`, and the one whose entry was overwritten drops out.

A process that was only stopped, or cut off from the file system, may come back to a folder that was taken over: it looks with
every sign of life, when it begins a save, and before the save gets its name, and ends.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

from megaunigame.checkpoint.agreement import on_main
from megaunigame.errors import ConfigError
from megaunigame.parallel.ranks import Ranks
from megaunigame.storage.disk_errors import in_words
from megaunigame.training.lock_holder import ENTRY_BYTES, Holder, decoded

FILE = "running.json"
BEAT_SECONDS, SILENCE_SECONDS = 20.0, 120.0
CONFIRM_SECONDS = 2.0
HELD, BUSY, NONE = "held", "busy", "none"
"""The lock: ours now, another process's, or the file system has none."""
GONE = (errno.ENOENT, errno.ESTALE)
"""What is answered for a file that somebody has deleted; ESTALE: by a network file system."""
log = logging.getLogger(__name__)


class Claim:
    """A run folder that this process has. Its file stays open: closing any handle of it would give the lock away."""

    def __init__(self, path: Path, handle: int):
        self.path, self.handle, self.holder = path, handle, Holder.here()
        self.lost = False
        """Whether the thread has found that another run has taken it over."""
        self._write(self.holder)
        os.ftruncate(handle, ENTRY_BYTES)
        self._guard = threading.Lock()
        threading.Thread(target=self._beat, daemon=True, name="sign of life").start()

    @property
    def is_ours(self) -> bool:
        """Whether no other run has taken it over."""
        try:
            same_file = os.stat(self.path).st_ino == os.fstat(self.handle).st_ino
            return same_file and self.holder.is_same_claim(decoded(os.pread(self.handle, 1 << 16, 0)))
        except OSError as error:
            log.warning("%s cannot be read (%s).", self.path, error)
            return error.errno not in GONE  # a file system that is away for a while

    def overwritten_by(self) -> Holder | None:
        """Another run's entry in its place. The file is opened again: that is when a network file system asks for news."""
        now = decoded(self.path.read_bytes())
        return None if now is None or self.holder.is_same_claim(now) else now

    def drop(self) -> None:
        """The folder is another run's: nothing is written any more."""
        with self._guard:
            self.holder = replace(self.holder, ended=True)
            os.close(self.handle)

    def release(self) -> None:
        """Say that the run has ended: the next one need not wait for signs of life."""
        with self._guard:
            if not self.holder.ended and self.is_ours:
                self._write(replace(self.holder, ended=True))

    def _beat(self) -> None:
        while not self.holder.ended:
            time.sleep(BEAT_SECONDS)
            with self._guard:
                if self.holder.ended or self.lost:
                    return
                self.lost = not self.is_ours
                if self.lost:
                    return
                try:
                    self._write(self.holder.beat())
                except OSError as error:
                    log.warning("%s cannot be written (%s).", self.path, error)

    def _write(self, holder: Holder) -> None:
        os.pwrite(self.handle, holder.encoded(), 0)
        os.fsync(self.handle)  # other machines see it now, not when a cache is written back
        self.holder = holder


_claims: list[Claim] = []
"""Of this process."""


def claim(output: str, world: Ranks) -> None:
    """Take the run folder for this process's run, until the process ends. Collective.

    Two runs in one folder would cut each other's metrics and delete each other's checkpoints. Raises ConfigError on every rank
    when another run holds the folder, or when it cannot be made.
    """
    problem = world.broadcast_object(_claim(Path(output)) if world.is_main else "")
    if problem:
        raise ConfigError(problem)


def check_held(world: Ranks) -> None:
    """Raise ConfigError on every rank when another run has taken over a folder of this process. Collective."""
    on_main(world, check_held_here)


def check_held_here() -> None:
    """The same in the process of rank 0, which is the one that has the claim. Not a collective."""
    lost = [held for held in _claims if not held.holder.ended and not held.is_ours]
    if lost:
        raise _taken_over(lost[0])


def lost_folder() -> ConfigError | None:
    """The same error, as far as the signs of life have found it: between two steps, without a look at the file system."""
    return next((_taken_over(held) for held in _claims if held.lost), None)


def _taken_over(held: Claim) -> ConfigError:
    return ConfigError(
        f"output={held.path.parent} was taken over by another run; nothing more is written there. Let that run go on, or stop "
        "it and give this command again."
    )


def release() -> None:
    """The runs of this process have ended."""
    while _claims:
        held = _claims.pop()
        held.release()
        os.close(held.handle)


def _claim(folder: Path) -> str:
    """Why the folder cannot be used; empty: it is ours."""
    for held in _claims:
        if held.path == folder.absolute() / FILE and held.is_ours:
            return ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o644)
        lock = _lock(handle)
        problem = _refusal(folder, handle, lock)
        # Again: looking for signs of life gives the lock away, and somebody else may have looked too.
        if not problem and _lock(handle) == BUSY:
            problem = _in_use(folder, "another process", None)
        if problem:
            os.close(handle)
            return problem
        held = Claim(folder.absolute() / FILE, handle)
        if lock == NONE:
            time.sleep(CONFIRM_SECONDS)
            other = held.overwritten_by()
            if other is not None:
                held.drop()
                return _in_use(folder, str(other), None)
        _claims.append(held)
    except (FileExistsError, NotADirectoryError):
        return f"output={folder} is, or lies below, a file. Type output=FOLDER with the name of a folder."
    except OSError as error:
        why = in_words(error, folder)
        return f"output={folder} cannot be a run folder: {why}. Type output=FOLDER with one that can be written."
    return ""


def _lock(handle: int) -> str:
    try:
        # A record lock: forked loader workers do not inherit it, and it ends with the process, however that ends.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return BUSY
        log.warning("The run folder has no record locks (%s): signs of life alone keep a second run out of it.", error)
        return NONE
    return HELD


def _refusal(folder: Path, handle: int, lock: str) -> str:
    """Why the folder is another run's; empty: it may be taken."""
    holder = decoded(os.pread(handle, 1 << 16, 0))
    if lock != BUSY and (holder is None or holder.ended):
        return ""
    if holder is None:
        return _in_use(folder, "another process", None)
    age = _age(folder)
    if holder.is_near:
        alive = lock == BUSY or holder.is_running
    else:
        alive = lock == BUSY or (age <= SILENCE_SECONDS and _gives_signs(folder, holder, SILENCE_SECONDS - age))
    if alive:
        silent = lock == BUSY and not holder.is_near and age > SILENCE_SECONDS
        return _in_use(folder, str(holder), age) + (_IF_GONE.format(holder.host, folder / FILE) if silent else "")
    log.warning("output=%s: the run that had it (%s) is gone; it is taken over.", folder, holder)
    return ""


_IF_GONE = " It holds the lock still: if nothing runs on {} any more, delete {} and give this command again."


def _in_use(folder: Path, who: str, age: float | None) -> str:
    sign = "" if age is None else f", last sign of life {age:.0f} s ago"
    return f"output={folder} is in use by another run: {who}{sign}. Give another output, or wait until that one has ended."


def _age(folder: Path) -> float:
    """Seconds since the last sign of life, by the clock of the file system."""
    probe = folder / f"{FILE}.probe-{os.getpid()}"
    probe.write_bytes(b"")
    now = probe.stat().st_mtime
    probe.unlink()
    return max(0.0, now - (folder / FILE).stat().st_mtime)


def _gives_signs(folder: Path, holder: Holder, seconds: float) -> bool:
    """Whether the holder writes one within that time."""
    log.warning("output=%s was in use by %s: waiting up to %.0f s for a sign of life.", folder, holder, seconds)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(min(1.0, seconds / 10))
        # Opened again each time: that is when a network file system asks for news.
        now = decoded((folder / FILE).read_bytes())
        if now != holder:
            return now is None or not now.ended
    return False
