"""A worker process ends with the process that made it, however that one ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


def end_with_parent() -> None:
    """The kernel ends this process when its parent ends (Linux).

    A worker inherits the parent's connections to other ranks. While it lives they stay open, so the other ranks would wait for
    a killed rank until their time-out, and its port would stay taken. The DataLoader's own watch does not help: a worker that
    waits to hand over a batch that nobody reads no longer looks.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it ended before the call
        os._exit(1)
