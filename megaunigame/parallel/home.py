"""Where a rank runs."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from megaunigame.parallel.processes import PROC


@dataclass(frozen=True)
class Home:
    """Host and process of a rank."""

    rank: int
    host: str
    machine: str
    """Processes that see each other's pids have the same: not those of two containers on one host. Empty: not to be known."""
    pid: int

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (pid {self.pid})"

    def sees(self, other: Home) -> bool:
        """Whether the pid of the other rank means something here."""
        return bool(self.machine) and self.machine == other.machine


def home_of_process(rank: int) -> Home:
    try:
        machine = f"{(PROC / 'sys/kernel/random/boot_id').read_text().strip()} {os.readlink(PROC / 'self/ns/pid')}"
    except OSError:
        machine = ""
    return Home(rank, socket.gethostname(), machine, os.getpid())
