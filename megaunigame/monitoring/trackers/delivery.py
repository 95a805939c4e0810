"""Delivers the calls of a run to one tracker, from a thread: a service that fails or does not answer neither ends nor delays
the run. The first failure is a warning with its reason; at the end there is a line with their number."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from megaunigame.monitoring.trackers.base import Tracker
from megaunigame.storage.foreign_text import one_line

WAITING = 10_000
"""Calls that may wait for a tracker; more are dropped, and counted."""
START_SECONDS = 30.0
"""How long the run waits for a tracker to begin. Loader processes are forked after that: no import should be under way."""
CLOSE_SECONDS, INTERRUPTED_SECONDS = 60.0, 10.0
"""How long the run waits at its end for what is not delivered yet; the second after a signal: a launcher may soon kill it."""
log = logging.getLogger(__name__)


class Delivery:
    """One tracker, and its thread."""

    def __init__(self, name: str, tracker: Tracker, earlier: str, keep: Callable[[str], None]):
        """`earlier`: id of the tracker's run in an earlier launch; `keep` is told the one of this launch, from the thread."""
        self.name, self.tracker = name, tracker
        self.calls = self.arrived = 0
        """Made so far; that the tracker has taken."""
        self.reason = ""
        """Of the first failure."""
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._deliver, args=(earlier, keep), name=f"tracker {name}", daemon=True)
        self._thread.start()
        if not self._started.wait(START_SECONDS):
            log.warning("%s has not answered within %g s: the run goes on, and it is told later.", name, START_SECONDS)

    def call(self, what: Callable[[], None]) -> None:
        """Have a method of the tracker called. Its arguments must not change any more."""
        self.calls += 1
        try:
            self._calls.put_nowait(what)
        except queue.Full:
            self._note(f"{WAITING:,} calls wait for it")

    def close(self, complete: bool) -> str:
        """The last call; returns what to say about calls that did not arrive, empty if all did."""
        self.call(lambda: self.tracker.close(complete))
        patience = CLOSE_SECONDS if complete else INTERRUPTED_SECONDS
        until = time.monotonic() + patience
        try:
            self._calls.put(None, timeout=patience)
        except queue.Full:
            pass  # said below: the thread has not ended
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._note(f"no answer within {patience:g} s at the end")
        lost = self.calls - self.arrived
        if not lost:
            return ""
        return f"{self.name}: {lost} of {self.calls} updates did not arrive ({self.reason}). All metrics are in metrics.jsonl."

    def _deliver(self, earlier: str, keep: Callable[[str], None]) -> None:
        begun = self._noted(lambda: keep(self.tracker.start(earlier)))
        self._started.set()
        while (what := self._calls.get()) is not None:
            if begun and self._noted(what):
                self.arrived += 1

    def _noted(self, what: Callable[[], None]) -> bool:
        """Whether a call went well."""
        try:
            what()
        except Exception as error:  # of a foreign package, or of a network: of any type
            self._note(f"{type(error).__name__}: {error}")
            return False
        return True

    def _note(self, reason: str) -> None:
        if not self.reason:
            self.reason = one_line(reason)
            log.warning("%s fails: %s. The run goes on; all metrics are in metrics.jsonl.", self.name, self.reason)
