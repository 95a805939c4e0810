"""The time that a download has. A server that sends bytes without an end, slowly or fast, must not hold a run.

Time limits of sockets only say how long one read may take. Here the lines around the content count as well: status, headers,
answers such as `100 Continue`, lengths of chunks and their extensions, trailers.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SILENCE = 60.0
"""Seconds to connect, between two reads that bring something, and until the headers of an answer are complete."""
WINDOW, LEAST = 300.0, 1_000_000
"""After the headers: every so many seconds at least so many bytes of content, or the end of the file."""


class SlowError(TimeoutError):
    """The server sends, but too little of what was asked for."""


class Pace:
    """The time of one answer."""

    def __init__(self) -> None:
        self._limit, self._content = f"no complete headers in {SILENCE:g} s", 0
        self._end = time.monotonic() + SILENCE

    def content(self, count: int) -> None:
        """So many bytes of content have come; 0: it begins."""
        self._content += count
        if count == 0 or self._content >= LEAST:
            self._limit, self._content = f"fewer than {LEAST:,} bytes in {WINDOW:g} s", 0
            self._end = time.monotonic() + WINDOW

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What takes time in the block is not the server."""
        began = time.monotonic()
        yield
        self._end += time.monotonic() - began

    def check(self) -> None:
        """Raises SlowError when the time is over."""
        if time.monotonic() > self._end:
            raise SlowError(self._limit)


class PacedResponse(http.client.HTTPResponse):
    """Checks its `pace` at every read of the connection."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any):
        super().__init__(sock, *args, **options)
        self.pace = Pace()
        self.fp = io.BufferedReader(_PacedReader(self.fp.detach(), self.pace))


class _PacedReader(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, pace: Pace):
        self._raw, self._pace = raw, pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        got = self._raw.readinto(buffer)
        self._pace.check()
        return got

    def close(self) -> None:
        self._raw.close()
        super().close()
