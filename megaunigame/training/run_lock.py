"""One run at a time in a run folder."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from megaunigame.errors import ConfigError
from megaunigame.parallel.ranks import Ranks

FILE = "running.json"
log = logging.getLogger(__name__)
_held: list[IO[str]] = []
"""Open files of this process: closing one would give its lock away."""


def claim(output: str, world: Ranks) -> None:
    """Take the run folder for this process's run, until the process ends. Collective.

    Two runs in one folder would cut each other's metrics and delete each other's checkpoints. Raises ConfigError on every rank
    when another run holds the folder, or when it cannot be made.
    """
    problem = _claim(Path(output)) if world.is_main else ""
    problem = world.all_gather_object(problem)[0]
    if problem:
        raise ConfigError(problem)


def _claim(folder: Path) -> str:
    """Why the folder cannot be used; empty: it is ours."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / FILE, "a+", encoding="utf-8")
    except OSError as error:
        return f"output={folder} cannot be a run folder ({error.strerror}). Give a folder that can be written."
    try:
        # A record lock: forked loader workers do not inherit it, and it ends with the process, however that ends.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):  # nobody has it: there are no such locks
            log.warning("%s has no record locks (%s): nothing keeps a second run out of this folder.", folder, error)
            return _write(lock)
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        return f"output={folder} is in use by another run: {holder}. Give another output, or wait until that one has ended."
    return _write(lock)


def _write(lock: IO[str]) -> str:
    """Say in the file who has it, and keep it open."""
    lock.truncate(0)
    who = {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    lock.write(json.dumps(who))
    lock.flush()
    _held.append(lock)
    return ""
