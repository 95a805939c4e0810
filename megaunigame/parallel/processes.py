"""Processes of this machine: whether one lives, who listens on a port, and whether a launcher started this one."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
LISTENS = "0A"
"""State of a listening socket in /proc/net/tcp."""
GONE, STOPPED, LIVES = "has ended", "is stopped (SIGSTOP, or a debugger)", "lives"
TEAM = "MEGAUNIGAME_TEAM"
"""In the environment of ranks that this package has started: the pid of the process that waits for them."""
LAUNCHERS = ("deepspeed.launcher.launch", "torch.distributed.run", "torch.distributed.launch")
"""Modules whose process starts ranks and ends them."""
LAUNCHER_FILES = ("/deepspeed/launcher/launch.py", "/torchrun", "launch/node.py")
"""The same as scripts: ends of their paths."""


def state_of(pid: int) -> str:
    """`GONE`, `STOPPED` or `LIVES`. Where processes cannot be seen (no /proc), what a signal finds."""
    try:
        # pid (name) state ...; the name may have blanks and parentheses.
        letter = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return LIVES if not PROC.is_dir() and _answers(pid) else GONE
    if letter in "ZXx":  # dead, and not yet waited for
        return GONE
    return STOPPED if letter in "Tt" else LIVES


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def launcher_pid() -> int | None:
    """The launcher that started this process; None for a shell, a scheduler or a test, whose end says nothing."""
    parent = os.getppid()
    if os.environ.get(TEAM) == str(parent):
        return parent
    words = _command(parent).split()
    starts_ranks = any(w in LAUNCHERS or w.endswith(LAUNCHER_FILES) for w in words[:4])
    return parent if starts_ranks and "RANK" in os.environ else None


def _command(pid: int) -> str:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def listener_of(port: int) -> str:
    """`pid 12 (python launch/train.py ...)` for the process that listens on a TCP port here; empty: not to be known."""
    inodes = set(_listening(port))
    for process in PROC.glob("[0-9]*") if inodes else ():
        if not inodes.isdisjoint(_links(process / "fd")):
            return f"pid {process.name} ({_command(int(process.name))[:200]})"
    return ""


def _links(folder: Path) -> Iterator[str]:
    """Targets of the links in a folder, as far as they can be read: files are closed, processes end, or are another user's."""
    try:
        links = list(folder.iterdir())
    except OSError:
        return
    for link in links:
        with contextlib.suppress(OSError):
            yield os.readlink(link)


def _listening(port: int) -> Iterator[str]:
    """Link targets of the sockets that listen on a port."""
    for table in ("tcp", "tcp6"):
        try:
            lines = (PROC / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                yield f"socket:[{fields[9]}]"


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
