"""What the loader workers of a rank read at this moment, for messages about slow and dead ones."""

from __future__ import annotations

import mmap
import struct
import time

HEAD = struct.Struct("=qdq")
"""Process id, when it began (monotonic seconds), bytes of the text."""
SLOT = 512
"""Bytes per worker; longer texts are cut."""


class Whereabouts:
    """A line per worker in memory that the workers inherit. They write without a lock: a text may be half old."""

    def __init__(self, workers: int):
        """0: the main process reads itself."""
        self.workers = max(1, workers)
        self._memory = mmap.mmap(-1, SLOT * self.workers)

    def note(self, slot: int, process: int, doing: str) -> None:
        """Worker `slot` begins to read `doing`; empty: it has nothing to do."""
        text = doing.encode("utf-8", "replace")[: SLOT - HEAD.size]
        start = slot * SLOT
        content = HEAD.pack(process, time.monotonic(), len(text)) + text
        self._memory[start : start + len(content)] = content

    def of(self, process: int | None) -> tuple[str, float] | None:
        """What a process reads, and for how many seconds; None: nothing."""
        return next(((doing, seconds) for pid, doing, seconds in self._lines() if pid == process and doing), None)

    def have_begun(self, processes: set[int | None]) -> bool:
        """Whether all of these have noted something."""
        return processes <= {pid for pid, _, _ in self._lines()}

    def as_text(self) -> str:
        """One sentence."""
        parts = [
            f"pid {pid} has read {doing} for {seconds:.0f} s" if doing else f"pid {pid} waits for something to read"
            for pid, doing, seconds in self._lines()
        ]
        return f"Its loader workers: {'; '.join(parts) or 'none has begun'}."

    def _lines(self) -> list[tuple[int, str, float]]:
        lines = []
        for start in range(0, SLOT * self.workers, SLOT):
            process, began, length = HEAD.unpack_from(self._memory, start)
            if process:
                text = self._memory[start + HEAD.size : start + HEAD.size + min(max(length, 0), SLOT - HEAD.size)]
                lines.append((process, text.decode("utf-8", "replace"), time.monotonic() - began))
        return lines
