"""Files over http and https: limits per read and not per file, and never more bytes than were promised.

The server is not trusted. Redirects stay on http(s), never go from https to http, never to a link-local address (where clouds
answer with credentials), and never from the internet into a private network or this machine. Proxies are those of the
environment (`https_proxy`, `no_proxy`).
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO
from urllib.parse import unquote, urlsplit, urlunsplit

from megaunigame.storage.plain_names import readable

SILENCE = 60.0
"""Seconds to connect, and between two reads that bring something."""
WINDOW, LEAST = 300.0, 1_000_000
"""Every so many seconds at least so many bytes: a server that drips cannot hold a run forever."""
AT_ONCE = 2**20
BUSY = (408, 425, 429)
"""Answers below 500 after which asking again may help."""


class FinalError(OSError):
    """Asking again does not help. The text follows the URL."""


def pieces(url: str, most: int) -> Iterator[bytes]:
    """The file at `url`, in parts. Raises FinalError when it cannot be had, or has more than `most` bytes; other errors
    (OSError, http.client.HTTPException) when asking again may help."""
    try:
        with _opened(url) as answer:
            yield from _body(answer, most)
    except TimeoutError as error:
        raise TimeoutError(str(error) if str(error).startswith("fewer") else f"no byte for {SILENCE:g} s") from error
    except (http.client.InvalidURL, ValueError) as error:
        raise FinalError(f"is not a legal URL ({error})") from error


def _opened(url: str) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)), headers={"Accept-Encoding": "identity"})
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        # Not sent on to where the server redirects to.
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=SILENCE)  # type: ignore[no-any-return]
    except urllib.error.HTTPError as error:
        error.close()
        if error.code < 500 and error.code not in BUSY:
            raise FinalError(_final(error)) from error
        raise
    except urllib.error.URLError as error:  # hides what happened
        raise error.reason if isinstance(error.reason, OSError) else error from None


def _body(answer: http.client.HTTPResponse, most: int) -> Iterator[bytes]:
    stated = answer.headers["Content-Length"]
    promised = int(stated) if stated is not None and stated.isdigit() else None
    if promised is not None and promised > most:
        raise FinalError(f"has {promised:,} bytes, {most:,} are allowed")
    got, before, began = 0, 0, time.monotonic()
    while part := answer.read1(AT_ONCE):
        got += len(part)
        if got > most:
            raise FinalError(f"sends more than the {most:,} bytes that are allowed: cut off")
        yield part
        if time.monotonic() - began > WINDOW:
            if got - before < LEAST:
                raise TimeoutError(f"fewer than {LEAST:,} bytes in {WINDOW:g} s")
            before, began = got, time.monotonic()
    if promised is not None and got != promised:
        raise OSError(f"the answer ended after {got:,} of {promised:,} bytes")


def _final(error: urllib.error.HTTPError) -> str:
    """What an answer means that will not change."""
    said = f"the server answers {error.code} {readable(str(error.reason))[:80]}"
    if error.code in (401, 403):
        return f"may not be read ({said}): it wants a login, or a signed URL has expired. Check the URL, and who may read it"
    if error.code in (404, 410):
        return f"is not there ({said}). Check the URL, or upload the folder again, dataset.json last"
    return f"cannot be had ({said}). Check the URL"


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        check_redirect(req.full_url, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_redirect(source: str, target: str) -> None:
    """Raises FinalError for a redirect that a server has no reason to ask for."""
    before, after = urlsplit(source), urlsplit(target)
    redirects = f"redirects to {readable(target)[:200]},"
    if after.scheme not in ("http", "https") or (before.scheme == "https" and after.scheme == "http"):
        raise FinalError(f"{redirects} and only http and https are followed, from https only https")
    if before.hostname == after.hostname:
        return
    there = _addresses(after.hostname)
    if any(address.is_link_local for address in there):
        raise FinalError(f"{redirects} a link-local address: never followed")
    inside = any(not address.is_global for address in there)
    if inside and all(address.is_global for address in _addresses(before.hostname)):
        raise FinalError(f"{redirects} which is inside a private network: not followed")


def _addresses(host: str | None) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Of a host; none when its name is not known here: only a proxy can reach it then."""
    try:
        found = socket.getaddrinfo(host or "", None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return [getattr(address, "ipv4_mapped", None) or address for address in addresses]
