"""Files of one rank that a thread writes while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from megaunigame.storage.disk_errors import in_words, may_pass
from megaunigame.storage.pending import PendingFile, WrittenFile
from megaunigame.storage.retries import retried
from megaunigame.storage.whole_files import flush_folder


class BackgroundWriting:
    """Writes `files` into `folder`, which it makes. The results hold once it has ended."""

    def __init__(self, files: Sequence[PendingFile], folder: Path):
        self.files, self.folder = files, folder
        self.written: list[WrittenFile] = []
        self.problem = "its writing was cut off"
        """Why not all files are written; empty: they are."""
        self.transient = False
        """Whether the same writing may succeed later."""
        self.moved = 0
        """Bytes that the disk has, with those of failed tries."""
        # A daemon: a run that ends with an error does not wait for it, as one that is killed does not.
        self._thread = threading.Thread(target=self._write, daemon=True, name="checkpoint")
        self._thread.start()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> None:
        self._thread.join(seconds)

    def _count(self, size: int) -> None:
        self.moved += size

    def _write(self) -> None:
        try:
            # Rank 0 has made the folder, but the file system of another node may not show it yet.
            retried(lambda: self.folder.mkdir(parents=True, exist_ok=True))
            for file in self.files:
                self.written.append(retried(partial(file.write, self.folder, self._count)))
            retried(lambda: flush_folder(self.folder))
            self.problem = ""
        except OSError as error:
            self.transient = may_pass(error)
            self.problem = in_words(error, self.folder, sum(file.bytes for file in self.files))
        except Exception as error:  # reported by the rank that waits: nobody sees the traceback of a thread
            self.problem = f"{type(error).__name__}: {error}"
        self.files = ()  # their host memory
