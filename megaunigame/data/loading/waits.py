"""Waits of the main process for its data, which a thread looks at."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Wait:
    """Says since when the main process waits."""

    def __init__(self) -> None:
        self.since: float | None = None
        """On the monotonic clock; None: it does not wait."""
        self.closed = threading.Event()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self.since = time.monotonic()
        try:
            yield
        finally:
            self.since = None

    def close(self) -> None:
        """The thread ends."""
        self.closed.set()
