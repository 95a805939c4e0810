"""A run that was asked to stop does not wait for data that may never come."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess

from megaunigame.data.loading.waits import Wait

PATIENCE = 5.0
"""Seconds: what comes in them is used, so that most runs end after a whole step."""
LOOK = 0.5

log = logging.getLogger(__name__)


class Leaving(Wait):
    """Ends the loader workers when the main process has waited for them for a while, and the run was asked to stop.

    They may be in a read that nothing else can end. The next launch reads the same samples again.
    """

    def __init__(self, stopping: Callable[[], bool], team: Sequence[BaseProcess]):
        super().__init__()
        self.stopping, self.team = stopping, team
        self.left = False
        """The workers were ended."""
        if team:
            threading.Thread(target=self._watch, daemon=True, name="leaving").start()

    def _watch(self) -> None:
        asked: float | None = None
        while not self.closed.wait(LOOK):
            if asked is None and self.stopping():
                asked = time.monotonic()
            since = self.since
            if asked is None or since is None or time.monotonic() - max(asked, since) < PATIENCE:
                continue
            log.warning("The run was asked to stop: this rank leaves the wait for its data.")
            self.left = True
            for process in self.team:
                process.kill()
            return
