"""Where a download may be redirected to. What is checked is what is connected to: a host is looked up once."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from megaunigame.data.shards.urls import FinalError, shown

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
METADATA = frozenset(map(ipaddress.ip_address, ("168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254")))
"""Where clouds answer with credentials and settings, next to link-local addresses."""
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""NAT64: the last 32 bits are an IPv4 address."""
_PLAIN = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]*)?", re.IGNORECASE | re.ASCII)
"""A host and port that every reader of URLs takes apart in the same way."""
TRIED = 4
"""Addresses of one host."""


@dataclass(frozen=True)
class Place:
    """An address of a host."""

    family: int
    address: tuple[Any, ...]
    """As sockets want it, with any port."""

    @property
    def ip(self) -> IP:
        """An IPv4 address, when an IPv6 address stands for one."""
        ip = ipaddress.ip_address(str(self.address[0]).partition("%")[0])
        if not isinstance(ip, ipaddress.IPv6Address):
            return ip
        translated = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in TRANSLATED else None
        return ip.ipv4_mapped or ip.sixtofour or translated or ip


class Hosts:
    """The hosts of one download."""

    def __init__(self) -> None:
        self._places: dict[str, list[Place]] = {}

    def of(self, host: str) -> list[Place]:
        """The addresses of a host; none when its name is not known here: only a proxy can reach it then."""
        if host not in self._places:
            try:
                entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                entries = []
            self._places[host] = [Place(family, tuple(address)) for family, _, _, _, address in entries]
        return self._places[host]

    def connect(self, where: tuple[str, int], timeout: float, _source: object = None) -> socket.socket:
        """A connection to a host and port. Raises OSError."""
        host, port = where
        problem = OSError(f"the address of {shown(host)} is not known here")
        for place in self.of(host.lower())[:TRIED]:
            connection = socket.socket(place.family, socket.SOCK_STREAM)
            connection.settimeout(timeout)
            try:
                connection.connect((place.address[0], port, *place.address[2:]))
            except OSError as error:
                connection.close()
                problem = error
            else:
                return connection
        raise problem

    def check_redirect(self, source: str, target: str) -> None:
        """Raises FinalError for a redirect that a server has no reason to ask for."""
        before, after = urlsplit(source), urlsplit(target)
        redirects = f"redirects to {shown(target)[:200]},"
        if after.scheme not in ("http", "https") or (before.scheme == "https" and after.scheme == "http"):
            raise FinalError(f"{redirects} and only http and https are followed, from https only https")
        if not _PLAIN.fullmatch(after.netloc.rpartition("@")[2]):
            raise FinalError(f"{redirects} whose host is not a plain name or address")
        if before.hostname == after.hostname:
            return
        there = [place.ip for place in self.of(after.hostname or "")]
        if any(ip.is_link_local or ip in METADATA for ip in there):
            raise FinalError(f"{redirects} a link-local address, or one of a cloud's metadata: never followed")
        here = [place.ip for place in self.of(before.hostname or "")]
        # One public address is enough to be a server of the internet: its owner decides about the others.
        if any(not ip.is_global for ip in there) and (not here or any(ip.is_global for ip in here)):
            raise FinalError(f"{redirects} which is inside a private network: not followed")
