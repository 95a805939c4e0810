"""Calls of the file system that are tried again: a network file system may fail one call, and answer the next."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from megaunigame.storage.disk_errors import NOT_A_FILE, may_pass

WAITS = (0.5, 2.0, 8.0)
"""Seconds before each further try. Together shorter than a rank may be silent."""
log = logging.getLogger(__name__)
T = TypeVar("T")


def retried(work: Callable[[], T]) -> T:
    """What `work` returns. An OSError that may pass is logged, and `work` is called again; the last one is raised.

    `work` must be fit to be done twice.
    """
    for wait in WAITS:
        try:
            return work()
        except OSError as error:
            if not may_pass(error) or error.errno in NOT_A_FILE:
                raise
            log.warning("%s: %s. Trying again in %.1f s.", type(error).__name__, error, wait)
            time.sleep(wait)
    return work()
