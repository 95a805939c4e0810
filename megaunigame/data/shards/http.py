"""Files over http and https: limits per read and not per file, and never more bytes than were promised.

The server is not trusted. Redirects stay on http(s), never go from https to http, never to a link-local address (where clouds
answer with credentials), and never from the internet into a private network or this machine. Proxies are those of the
environment (`https_proxy`, `no_proxy`); what a proxy connects to is its own decision.
"""

from __future__ import annotations

import base64
import http.client
import string
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from megaunigame.data.shards import pace
from megaunigame.data.shards.hosts import Hosts
from megaunigame.data.shards.pace import PacedResponse
from megaunigame.data.shards.urls import FinalError, GoneError, shown

AT_ONCE = 2**20
MOST_REDIRECTS = 10
REDIRECTS = (301, 302, 303, 307, 308)
BUSY = (408, 425, 429)
"""Answers below 500 after which asking again may help."""


def pieces(url: str, most: int) -> Iterator[bytes]:
    """The file at `url`, in parts. Raises FinalError when it cannot be had, or has more than `most` bytes; other errors
    (OSError, http.client.HTTPException) when asking again may help."""
    try:
        with _opened(url) as answer:
            yield from _body(answer, most)
    except pace.SlowError:
        raise
    except TimeoutError as error:
        raise TimeoutError(f"no byte for {pace.SILENCE:g} s") from error
    except (http.client.InvalidURL, ValueError) as error:
        raise FinalError(f"is not a legal URL ({shown(str(error))[:200]})") from error


def _opened(url: str) -> PacedResponse:
    """The answer with the file, after redirects. What other answers contain is never read."""
    hosts = Hosts()
    opener = urllib.request.build_opener(_NotFollowed, _Http(hosts), _Https(hosts))
    # Sent to this host only, not to where it redirects to.
    login = _login(url)
    for _ in range(1 + MOST_REDIRECTS):
        parts = urlsplit(url)
        bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
        request = urllib.request.Request(bare, headers={"Accept-Encoding": "identity"} | login)
        try:
            return opener.open(request, timeout=pace.SILENCE)  # type: ignore[no-any-return]
        except urllib.error.HTTPError as error:
            error.close()
            target = error.headers["Location"] if error.code in REDIRECTS else None
            if target is None:
                if error.code < 500 and error.code not in BUSY:
                    raise _final(error) from error
                raise
        except urllib.error.URLError as error:  # hides what happened
            raise error.reason if isinstance(error.reason, OSError) else error from None
        url = urljoin(bare, quote(target, encoding="iso-8859-1", safe=string.punctuation))
        hosts.check_redirect(bare, url)
        login = {}
    raise FinalError(f"redirects more than {MOST_REDIRECTS} times")


def _login(url: str) -> dict[str, str]:
    """The header with user and password of a URL."""
    parts = urlsplit(url)
    if parts.username is None:
        return {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def _body(answer: PacedResponse, most: int) -> Iterator[bytes]:
    promised = answer.length
    if promised is not None and promised > most:
        raise FinalError(f"has {promised:,} bytes, {most:,} are allowed")
    got = 0
    answer.pace.content(0)
    while part := answer.read1(AT_ONCE):
        got += len(part)
        if got > most:
            raise FinalError(f"sends more than the {most:,} bytes that are allowed: cut off")
        answer.pace.content(len(part))
        with answer.pace.paused():
            yield part
    if promised is not None and got != promised:
        raise OSError(f"the answer ended after {got:,} of {promised:,} bytes")


def _final(error: urllib.error.HTTPError) -> FinalError:
    """An answer that will not change."""
    said = f"the server answers {error.code} {shown(str(error.reason))[:80]}"
    if error.code in (401, 403):
        wants = "it wants a login, or a signed URL has expired. Check the URL, and who may read it"
        return FinalError(f"may not be read ({said}): {wants}")
    if error.code in (404, 410):
        return GoneError(f"is not there ({said}). Check the URL, or upload the folder again, dataset.json last")
    return FinalError(f"cannot be had ({said}). Check the URL")


class _NotFollowed(urllib.request.HTTPRedirectHandler):
    """urllib would read all that a redirect contains into memory, and look up its host once more."""

    def redirect_request(self, *_: Any) -> None:
        """Leaves it to who asked."""


class _Http(urllib.request.HTTPHandler):
    def __init__(self, hosts: Hosts):
        super().__init__()
        self.hosts = hosts

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_connecting(http.client.HTTPConnection, self.hosts), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, hosts: Hosts):
        super().__init__()
        self.hosts = hosts

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_connecting(http.client.HTTPSConnection, self.hosts), req)


def _connecting(kind: type[http.client.HTTPConnection], hosts: Hosts) -> Callable[..., http.client.HTTPConnection]:
    """Makes connections to checked addresses, whose answers have a pace."""

    def connection(host: str, **options: Any) -> http.client.HTTPConnection:
        made = kind(host, **options)
        made.response_class = PacedResponse
        made._create_connection = hosts.connect  # type: ignore[attr-defined]
        return made

    return connection
