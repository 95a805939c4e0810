"""How the ranks of a run meet: a store at MASTER_ADDR:MASTER_PORT, which rank 0 opens (under torchrun, its agent has)."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from megaunigame.errors import ConfigError
from megaunigame.parallel.beats import spelled
from megaunigame.parallel.environment import Place
from megaunigame.parallel.processes import free_port, listener_of

LINE_SECONDS = 30.0
"""Between two lines about ranks that have not come."""
ALL_HERE = "all here"


@dataclass(frozen=True)
class Meeting:
    """Where the store is."""

    host: str
    port: int
    store: Any
    """This rank's own connection, for the process group."""

    def connect(self) -> Any:
        """Another connection: a waiting collective may hold the first. For heartbeats."""
        client = dist.TCPStore(self.host, self.port, is_master=False, timeout=timedelta(seconds=60), wait_for_workers=False)
        return dist.PrefixStore("watch", client)


def meet(place: Place, seconds: float) -> Meeting:
    """Wait until all ranks are here. Raises ConfigError naming the port that is taken, or after `seconds` who has not come."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    until = time.monotonic() + seconds
    store = _open(host, port, seconds) if place.rank == 0 and not _has_agent() else _join(host, port, place, until)
    try:
        store.set(f"here/{place.rank}", socket.gethostname())
        missing = await_all(store, place.size, until) if place.rank == 0 else await_word(store, place.size, until)
    except dist.DistError as error:
        raise ConfigError(f"The store at {host}:{port} ended while the ranks met. Look at what rank 0 says.") from error
    if missing:
        raise ConfigError(
            f"After {seconds:.0f} s (engine.timeout_minutes), {attendance(place.size, missing)}. Look at the first lines of "
            "the nodes they should be on, or start with fewer ranks."
        )
    return Meeting(host, port, dist.PrefixStore("group", store))


def _has_agent() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _open(host: str, port: int, seconds: float) -> Any:
    """The store itself, in this process."""
    try:
        # Not with libuv: now and then, one of two connections that come at once is not served (2 of 80, torch 2.14).
        return dist.TCPStore(host, port, None, True, timedelta(seconds=seconds), wait_for_workers=False, use_libuv=False)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error) and os.strerror(errno.EADDRINUSE).lower() not in str(error).lower():
            raise ConfigError(
                f"Rank 0 cannot listen on port {port} of {socket.gethostname()}: {str(error).splitlines()[0]} Look at "
                f"MASTER_ADDR={host}: it must be an address of this machine."
            ) from error
        raise ConfigError(port_in_use(port)) from error


def port_in_use(port: int, by: str = "") -> str:
    who, free = by or listener_of(port), free_port()
    where = "" if by else f" of {socket.gethostname()}"
    return (
        f"Port {port}{where}, where the ranks would meet, is in use{f' by {who}' if who else ''}. Does an old "
        f"run live? End it, or take another port: deepspeed --master_port {free} ..., torchrun --master-port {free} ..."
    )


def _join(host: str, port: int, place: Place, until: float) -> Any:
    """A connection to rank 0's store, which may not be there yet."""
    text = f"rank {place.rank} on {socket.gethostname()} does not reach rank 0 at {host}:{port}"
    line = time.monotonic() + LINE_SECONDS
    while reason := _why_closed(host, port):  # torch would print a trace for every attempt
        now = time.monotonic()
        if now > until:
            raise ConfigError(
                f"{text} ({reason}). Did rank 0 start? Look at its first lines, at MASTER_ADDR, and at the firewall between "
                "the nodes."
            )
        if now > line:
            line = now + LINE_SECONDS
            print(f"{text} yet ({reason})", file=sys.stderr, flush=True)
        time.sleep(0.1)
    wait = timedelta(seconds=max(1.0, until - time.monotonic()))
    try:
        store = dist.TCPStore(host, port, is_master=False, timeout=wait, wait_for_workers=False)
        is_over = store.check([ALL_HERE])
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"What listens at {host}:{port} is not the store of rank 0 ({reason}). Look at rank 0.") from error
    if is_over:
        raise ConfigError(port_in_use(port, "a run whose ranks are all there"))
    return store


def _why_closed(host: str, port: int) -> str:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def await_all(store: Any, size: int, until: float) -> list[int]:
    """Rank 0: wait for all others, say for whom, and tell them. Returns those that have not come at `until`."""
    line = time.monotonic() + LINE_SECONDS
    missing = list(range(size))
    while missing := [rank for rank in missing if not store.check([f"here/{rank}"])]:
        now = time.monotonic()
        if now > until:
            return missing
        if now > line:
            line = now + LINE_SECONDS
            print(attendance(size, missing), file=sys.stderr, flush=True)
        time.sleep(0.05)
    store.set(ALL_HERE, "")
    return []


def await_word(store: Any, size: int, until: float) -> list[int]:
    """Another rank: wait for rank 0's word that all are here. Returns those that have not come at `until`."""
    try:
        store.wait([ALL_HERE], timedelta(seconds=max(1.0, until - time.monotonic())))
    except dist.DistError:
        return [rank for rank in range(size) if not store.check([f"here/{rank}"])]
    return []


def attendance(size: int, missing: Sequence[int]) -> str:
    have = "has" if len(missing) == 1 else "have"
    return f"{size - len(missing)} of {size} ranks have come; {spelled(missing)} {have} not"
