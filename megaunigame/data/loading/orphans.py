"""A process that must not outlive the one that started it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that the kernel sends when the parent ends."""


def end_with_parent() -> None:
    """End this process when the thread that started it does: the main one of its parent. Linux only.

    torch looks for the parent every 5 s, but then waits for a full queue that nobody empties: a worker would live forever, and
    with it its copies of the rank's connections, so that other ranks do not see them close.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "prctl")
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it has ended already
        os._exit(1)
