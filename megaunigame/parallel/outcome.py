"""How this process is about to end, as far as its threads know: a signal that comes then is not what ends it."""

from __future__ import annotations


class Outcome:
    """Written by the main thread, the watch and the thread that hears signals; each field by one of them."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.failed = False
        """The main thread has an error, and ends the process itself. Written by that thread."""
        self.dismissed = False
        """SIGTERM came after that: the launcher ends all ranks, because another one has ended. By the thread of signals."""
        self.verdict = ""
        """Why the run ends, as the watch found or was told. By the watch."""
        self.launcher_ended = False
        """The SIGTERM that comes is one that this process sends to itself. By the watch."""


OUTCOME = Outcome()
"""Of this process."""
