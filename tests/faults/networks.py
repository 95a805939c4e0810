"""Two hosts on one machine: network namespaces joined by a cable that can be cut. Needs root and Debian's iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

INTERFACE = "eth0"
ADDRESSES = ("10.78.0.1", "10.78.0.2")


class Unavailable(RuntimeError):
    """There are no network namespaces here; says why."""


@dataclass(frozen=True)
class TwoHosts:
    """Names of the namespaces. Rank 0's host has the first address."""

    names: tuple[str, str]

    environment = {"GLOO_SOCKET_IFNAME": INTERFACE}
    address = ADDRESSES[0]

    def cut(self) -> None:
        """From now on nothing of one host reaches the other, and neither is told."""
        _ip("-n", self.names[1], "link", "set", INTERFACE, "down")


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Raises Unavailable."""
    if os.geteuid() != 0:
        raise Unavailable("network namespaces need root")
    if shutil.which("ip") is None:
        raise Unavailable("`ip` is not installed: apt-get install iproute2")
    hosts = TwoHosts((f"mugf{os.getpid()}a", f"mugf{os.getpid()}b"))
    first, second = hosts.names
    try:
        _ip("netns", "add", first)
        _ip("netns", "add", second)
        _ip("-n", first, "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", second)
        for name, address in zip(hosts.names, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", INTERFACE, "up")
        yield hosts
    finally:
        for name in hosts.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)  # not there when it could not be made


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
