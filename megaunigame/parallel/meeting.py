"""How the ranks of a run meet: a store at MASTER_ADDR:MASTER_PORT, which rank 0 opens (under torchrun, its agent has)."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from megaunigame.errors import ConfigError, MeetingError
from megaunigame.parallel.beats import spelled
from megaunigame.parallel.environment import Place
from megaunigame.parallel.processes import free_port, listener_of

LINE_SECONDS = 30.0
"""Between two lines about ranks that have not come."""
ALL_HERE = "all here"
LOOK_SECONDS = 2.0
"""A rank that waits for the word of rank 0 looks so often whether rank 0 has called again."""
ASK_SECONDS = 0.2
"""Between two questions to the store."""
CALL = "call"
"""Key of the store: the name that rank 0 gave to this meeting. Under torchrun, the store of the agent outlives an attempt
(`--max-restarts`) and keeps its keys; counters of restarts differ between nodes, so rank 0 makes a new name."""


@dataclass(frozen=True)
class Meeting:
    """Where the store is."""

    host: str
    port: int
    call: str
    """Name of this meeting, before all its keys."""
    store: Any
    """This rank's own connection, for the process group."""

    def connect(self) -> Any:
        """Another connection: a waiting collective may hold the first. For heartbeats."""
        client = dist.TCPStore(self.host, self.port, is_master=False, timeout=timedelta(seconds=60), wait_for_workers=False)
        return dist.PrefixStore(f"{self.call}/watch", client)


def meet(place: Place, seconds: float, *, from_recipe: bool = True) -> Meeting:
    """Wait until all ranks are here. Raises MeetingError naming the port that is taken, or after `seconds` who has not come.

    `from_recipe`: whether a user sets `seconds`, by engine.timeout_minutes.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    until = time.monotonic() + seconds
    store = _open(host, port, seconds) if place.rank == 0 and not _has_agent() else _join(host, port, place, until)
    try:
        if place.rank == 0:
            call = uuid.uuid4().hex
            store.set(CALL, call)
            missing = await_all(dist.PrefixStore(call, store), place.size, until)
        else:
            call, missing = answer(store, place, until)
    except dist.DistError as error:
        raise MeetingError(f"The store at {host}:{port} ended while the ranks met. Look at what rank 0 says.") from error
    if missing:
        after = f"After {seconds:.0f} s (engine.timeout_minutes), " if from_recipe else f"After {seconds:.0f} s, "
        raise MeetingError(
            f"{after}{attendance(place.size, missing)}. Look at the first lines of the nodes they should be on, or start with "
            "fewer ranks."
        )
    return Meeting(host, port, call, dist.PrefixStore(f"{call}/group", store))


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
        raise MeetingError(port_in_use(port)) from error


def port_in_use(port: int, by: str = "") -> str:
    """`by`: of another rank than 0, who cannot say which port of rank 0's machine is free."""
    who = by or listener_of(port)
    where = "" if by else f" of {socket.gethostname()}"
    said = (
        f"Port {port}{where}, where the ranks would meet, is in use{f' by {who}' if who else ''}. Does an old run live? End it"
    )
    if by:
        return f"{said}, or take the port that rank 0 names."
    free = free_port()
    return (
        f"{said}, or take another port: launch/node.py --port {free} ... on every machine, deepspeed --master_port {free} ..., "
        f"torchrun --master-port {free} ..."
    )


def _join(host: str, port: int, place: Place, until: float) -> Any:
    """A connection to rank 0's store, which may not be there yet."""
    text = f"rank {place.rank} on {socket.gethostname()} does not reach rank 0 at {host}:{port}"
    line = time.monotonic() + LINE_SECONDS
    while reason := _why_closed(host, port):  # torch would print a trace for every attempt
        now = time.monotonic()
        if now > until:
            raise MeetingError(
                f"{text} ({reason}). Did rank 0 start? Look at its first lines, at MASTER_ADDR, and at the firewall between "
                "the nodes."
            )
        if now > line:
            line = now + LINE_SECONDS
            print(f"{text} yet ({reason})", file=sys.stderr, flush=True)
        time.sleep(0.1)
    wait = timedelta(seconds=max(1.0, until - time.monotonic()))
    try:
        return dist.TCPStore(host, port, is_master=False, timeout=wait, wait_for_workers=False)
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        raise MeetingError(f"What listens at {host}:{port} is not the store of rank 0 ({reason}). Look at rank 0.") from error


def _why_closed(host: str, port: int) -> str:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def await_all(store: Any, size: int, until: float) -> list[int]:
    """Rank 0: wait for all others, say for whom, and tell them. Returns those that have not come at `until`.

    `store`: keys of this meeting.
    """
    line = time.monotonic() + LINE_SECONDS
    missing = list(range(1, size))
    while missing := [rank for rank in missing if not store.check([here(rank)])]:
        now = time.monotonic()
        if now > until:
            return missing
        if now > line:
            line = now + LINE_SECONDS
            print(attendance(size, missing), file=sys.stderr, flush=True)
        time.sleep(0.05)
    store.set(ALL_HERE, "")
    return []


def answer(store: Any, place: Place, until: float) -> tuple[str, list[int]]:
    """Another rank: answer rank 0's call, and wait for its word that all are here.

    Returns the name of the meeting, and the ranks that have not come at `until`.
    """
    call, meeting, answered = "", store, False
    while True:
        newest = store.get(CALL).decode() if _comes(store, CALL, until) else ""
        if newest != call:
            call, meeting = newest, dist.PrefixStore(newest, store)
            # All were there before this rank: the meeting of an earlier attempt, or of another run.
            answered = not meeting.check([ALL_HERE])
            if answered:
                meeting.set(here(place.rank), socket.gethostname())
            elif not _has_agent():
                raise MeetingError(port_in_use(int(os.environ["MASTER_PORT"]), "a run whose ranks are all there"))
        if answered and _comes(meeting, ALL_HERE, until):
            return call, []
        if time.monotonic() > until:
            return call, _missing(meeting, place.size) if answered else [0]
        if not answered:
            time.sleep(LOOK_SECONDS / 4)


def _missing(meeting: Any, size: int) -> list[int]:
    """Rank 0, if all others have come: it has not said so."""
    return [rank for rank in range(1, size) if not meeting.check([here(rank)])] or [0]


def _comes(store: Any, key: str, until: float) -> bool:
    """Whether the key is there, or comes soon."""
    soon = min(until, time.monotonic() + LOOK_SECONDS)
    while not store.check([key]):  # not `wait`: torch prints two lines for each that times out
        if time.monotonic() > soon:
            return False
        time.sleep(ASK_SECONDS)
    return True


def here(rank: int) -> str:
    return f"here/{rank}"


def attendance(size: int, missing: Sequence[int]) -> str:
    have = "has" if len(missing) == 1 else "have"
    return f"{size - len(missing)} of {size} ranks have come; {spelled(missing)} {have} not"
