"""Who has a run folder: the entry in running.json, and whether that process lives."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

ENTRY_BYTES = 1024
"""An entry is filled up to this length and written by one call: a reader never sees half of two entries."""


@dataclass(frozen=True)
class Holder:
    """The process of rank 0 of a run."""

    host: str
    pid: int
    started: str = ""
    """When the process began, in ticks of its machine: a number that is used again is another process."""
    place: str = ""
    """Boot of the machine and namespace of its process numbers: there `pid` has a meaning."""
    since: str = ""
    beats: int = 0
    """Signs of life so far."""
    ended: bool = False

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()), _place(), since)

    def encoded(self) -> bytes:
        return json.dumps(asdict(self)).encode().ljust(ENTRY_BYTES)

    def beat(self) -> Holder:
        return replace(self, beats=self.beats + 1)

    def is_same_claim(self, other: Holder | None) -> bool:
        """Whether `other` is an entry of this claim, an earlier or a later one."""
        return other is not None and replace(other, beats=self.beats, ended=self.ended) == self

    @property
    def is_near(self) -> bool:
        """Whether its process would be seen from here."""
        return (self.host, self.place) == (socket.gethostname(), _place())

    @property
    def is_running(self) -> bool:
        """Of a near one: whether its process is there."""
        return bool(self.started) and _started(self.pid) == self.started

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}, since {self.since}"


def decoded(content: bytes) -> Holder | None:
    """The entry in a file; None for anything else. An entry of another version may have more fields, or fewer."""
    try:
        entry = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not {"host", "pid"} <= entry.keys():
        return None
    holder = Holder(**{field.name: entry[field.name] for field in fields(Holder) if field.name in entry})
    kinds = {"pid": int, "beats": int, "ended": bool}
    return holder if all(isinstance(value, kinds.get(name, str)) for name, value in asdict(holder).items()) else None


def _started(pid: int) -> str:
    """Empty: there is no such process, or it has ended and nobody has asked how."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()  # from field 3 on; the name, field 2, may hold blanks
    return "" if state in "ZX" else fields[18]


def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
