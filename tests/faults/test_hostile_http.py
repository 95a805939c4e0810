"""A server that is slow, refuses, lies, or is hostile: what a run downloads stays in its cache and within what was promised."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megaunigame.data.shards import hosts as hosts_module
from megaunigame.data.shards import pace, retrying
from megaunigame.data.shards.cache import ShardCache
from megaunigame.data.shards.hosts import Hosts
from megaunigame.data.shards.http import pieces
from megaunigame.data.shards.index import ShardIndex
from megaunigame.data.shards.retrying import attempt
from megaunigame.data.shards.urls import FinalError, reason_of
from megaunigame.errors import DataError, LostShard
from tests.data.http_folder import served
from tests.data.shard_files import everything, write_shards, written

pytestmark = pytest.mark.timeout(60)
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def answering(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """A server that gives this answer to everything; (its URL, what it was asked for)."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer(self)

        def log_message(self, *args: object) -> None:
            """No lines on stderr."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def status(code: int, reason: str | None = None, **headers: str) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(code, reason)
        for name, value in {"Content_Length": "0", **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()

    return answer


def body(content: bytes, stated: int | None = None) -> Answer:
    """An answer of this content; `stated`: another length in its header, 0 for none."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        if stated != 0:
            request.send_header("Content-Length", str(len(content) if stated is None else stated))
        request.end_headers()
        request.wfile.write(content)
        request.close_connection = True

    return answer


def cache_in(folder: Path) -> ShardCache:
    return ShardCache(folder, 1, first_pause=0.001)


@pytest.mark.fault(
    "a remote manifest names files outside the cache (10f)",
    does="refuses it; nothing is downloaded or overwritten",
    lost="nothing",
)
def test_a_remote_manifest_cannot_write_outside_the_cache(tmp_path):
    victim = tmp_path / "victim" / "evil.tar"
    victim.parent.mkdir()
    victim.write_text("mine")
    folder = write_shards(tmp_path / "shards", [2])
    manifest = json.loads((folder / "dataset.json").read_text())
    for file in ("../../../victim/evil.tar", str(victim), "../../victim/evil.tar"):
        manifest["shards"][0]["file"] = file
        (folder / "dataset.json").write_text(json.dumps(manifest))
        with served(folder) as server:
            with pytest.raises(DataError, match=r"dataset\.json lists .*evil\.tar.*not the name of a \.tar file"):
                ShardIndex.open(server.url, cache=cache_in(tmp_path / "cache"))
            assert set(server.requests) == {"dataset.json"}
    assert victim.read_text() == "mine" and sorted(victim.parent.iterdir()) == [victim]


@pytest.mark.fault("401, 403, 404, 410 of a server (10c)", does="ends at the first answer and says what helps", lost="nothing")
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (401, "may not be read .*401.*wants a login, or a signed URL has expired"),
        (403, "may not be read .*403.*wants a login, or a signed URL has expired"),
        (404, "is not there .*404.*dataset.json last"),
        (410, "is not there .*410"),
        (400, "cannot be had .*400"),
        (451, "cannot be had .*451"),
    ],
)
def test_final_answers_are_not_asked_again(tmp_path, code, words):
    with answering(status(code, "no\x1b[2J")) as (url, asked):
        with pytest.raises(DataError, match=words) as refused:
            cache_in(tmp_path).read(f"{url}/dataset.json")
    assert isinstance(refused.value, LostShard) == (code in (404, 410)), "who may not read a shard has not lost it"
    assert len(asked) == 1 and "network works" not in str(refused.value) and "\x1b" not in str(refused.value)


@pytest.mark.fault(
    "429, 500, 503 of a server (10a, 10b)", does="asks again, later and later; then names the reason", lost="nothing"
)
@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_busy_servers_are_asked_again(tmp_path, code):
    with answering(status(code)) as (url, asked):
        with pytest.raises(
            LostShard, match=rf"could not be read in 8 attempts; .*HTTPError: HTTP Error {code}.*When the network"
        ):
            cache_in(tmp_path).read(f"{url}/dataset.json")
    assert len(asked) == retrying.ATTEMPTS


def test_a_server_may_ask_to_wait(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(retrying.time, "sleep", pauses.append)
    for wish, expected in (("7", 7.0), ("100000", retrying.LONGEST_WISH), ("soon", 0.001)):
        with answering(status(503, Retry_After=wish)) as (url, _):
            with pytest.raises(LostShard):
                attempt(url, lambda: list(pieces(url, 10)), 0.001)  # noqa: B023
        assert pauses[0] == expected
        pauses.clear()


@pytest.mark.fault(
    "a server that answers nothing, or drips (10d)",
    does="gives up after 60 s without a byte, not after 5 minutes",
    lost="nothing",
)
def test_limits_are_per_read_and_not_per_file(monkeypatch):
    monkeypatch.setattr(pace, "SILENCE", 0.3)
    content = bytes(range(10))

    def slowly(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "10")
        request.end_headers()
        for number in content:
            request.wfile.write(bytes([number]))
            time.sleep(0.1)

    with answering(slowly) as (url, _):  # a second in all, more than the limit of one read
        assert b"".join(pieces(url, 10)) == content
        monkeypatch.setattr(pace, "WINDOW", 0.2)
        with pytest.raises(TimeoutError, match="fewer than 1,000,000 bytes in 0.2 s"):
            list(pieces(url, 10))
    waiting = threading.Event()
    with answering(lambda request: waiting.wait(5)) as (url, _):
        with pytest.raises(TimeoutError, match="no byte for 0.3 s"):
            list(pieces(url, 10))
        waiting.set()


def sending(request: http.server.BaseHTTPRequestHandler, first: bytes, again: bytes, every: float) -> None:
    """Raw bytes, the second again and again until the client hangs up."""
    try:
        request.wfile.write(first)
        while True:
            request.wfile.write(again)
            time.sleep(every)
    except OSError:
        request.close_connection = True


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.fault(
    "a server that drips lines around the content, or sends them without end",
    does="gives up: headers have 60 s, and every 300 s must bring content or the end",
    lost="nothing",
)
@pytest.mark.parametrize(
    ("first", "again", "every", "words"),
    [
        (b"HTTP/1.1 200 ", b"O", 0.05, "no complete headers in 0.3 s"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y", 0.05, "no complete headers in 0.3 s"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0, "no complete headers in 0.3 s"),
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"Trailer: yes\r\n", 0.0, "fewer than 1,000,000 bytes in 0.4 s"),
        (CHUNKED + b"1;extension=", b"y", 0.05, "fewer than 1,000,000 bytes in 0.4 s"),
    ],
)
def test_all_that_a_server_sends_has_a_time(monkeypatch, first, again, every, words):
    monkeypatch.setattr(pace, "SILENCE", 0.3)
    monkeypatch.setattr(pace, "WINDOW", 0.4)
    with answering(lambda request: sending(request, first, again, every)) as (url, _):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=words):
            list(pieces(url, 10))
        assert time.monotonic() - began < 5


def test_time_that_the_reader_takes_is_not_that_of_the_server(monkeypatch):
    monkeypatch.setattr(pace, "WINDOW", 0.3)
    with answering(body(bytes(3_000_000))) as (url, _):
        got = 0
        for part in pieces(url, 3_000_000):
            got += len(part)
            time.sleep(0.4 if got < 500_000 else 0.0)
    assert got == 3_000_000


@pytest.mark.fault("a redirect with a huge or endless content", does="follows or refuses it unread", lost="nothing")
def test_what_a_redirect_contains_is_not_read():
    sent = [0]

    def endless(request: http.server.BaseHTTPRequestHandler) -> None:
        if request.path == "/new":
            return body(b"content")(request)
        status(302, Location="/new", Content_Length=str(10**15))(request)
        try:
            while sent[0] < 10**9:
                sent[0] += request.wfile.write(bytes(10**6))
        except OSError:  # the client has hung up
            request.close_connection = True

    with answering(endless) as (url, asked):
        assert b"".join(pieces(f"{url}/old", 100)) == b"content"
    assert asked == ["/old", "/new"] and sent[0] < 10**8


def addresses_of(monkeypatch, **known: list[list[str]]) -> None:
    """Names and what each look-up of them gives, the last again and again; other names as ever."""
    as_ever = hosts_module.socket.getaddrinfo

    def look_up(host: str, *args: object, **options: object) -> list:
        answers = known.get(host)
        if answers is None:
            return as_ever(host, *args, **options)
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [entry for address in found for entry in as_ever(address, None, type=hosts_module.socket.SOCK_STREAM)]

    monkeypatch.setattr(hosts_module.socket, "getaddrinfo", look_up)


@pytest.mark.fault(
    "a server with a public and a private address, or one that changes, redirects into a private network",
    does="does not follow, and connects to the address that was checked",
    lost="nothing",
)
def test_one_public_address_makes_a_server_public(monkeypatch):
    addresses_of(monkeypatch, both=[["93.184.215.14", "10.0.0.1"]], inside=[["10.0.0.5"]])
    for source, target in (("http://both/a", "http://inside/a"), ("http://93.184.215.14/a", "http://both/a")):
        with pytest.raises(FinalError, match="inside a private network"):
            Hosts().check_redirect(source, target)


def test_a_host_is_looked_up_once(monkeypatch):
    def moved(request: http.server.BaseHTTPRequestHandler) -> None:
        target = f"http://other:{request.server.server_port}/new"
        (status(302, Location=target) if request.path == "/old" else body(b"content"))(request)

    addresses_of(monkeypatch, first=[["127.0.0.1"], ["0.0.0.1"]], other=[["127.0.0.1"], ["0.0.0.1"]])
    with answering(moved) as (url, asked):
        assert b"".join(pieces(url.replace("127.0.0.1", "first") + "/old", 100)) == b"content"
    assert asked == ["/old", "/new"]


@pytest.mark.fault(
    "a server's status line with characters that control a terminal", does="shows U+FFFD in their place", lost="nothing"
)
@pytest.mark.parametrize("line", [b"\x1b[2J\x1b]0;owned\x07 no status", b"HTTP/1.1 503 \x1b[2J\x9b2J"])
def test_what_a_server_says_does_not_reach_the_terminal(caplog, line):
    with answering(lambda request: request.wfile.write(line + b"\r\n\r\n")) as (url, _):
        with pytest.raises(LostShard) as lost:
            attempt(url, lambda: list(pieces(url, 10)), 0)
    said = [str(lost.value), *(record.getMessage() for record in caplog.records)]
    assert len(said) == retrying.ATTEMPTS and all("[2J" in text and text.isprintable() for text in said)


@pytest.mark.fault("a URL with a password", does="shows *** in messages, logs and the names of shards", lost="nothing")
def test_no_message_shows_a_password(tmp_path, caplog):
    write_shards(tmp_path / "shards", [2])

    def secret(url: str) -> str:
        return url.replace("http://", "http://me:SECRET@")

    with served(tmp_path / "shards") as server:
        server.refuse = 1
        index = ShardIndex.open(secret(server.url), cache=cache_in(tmp_path / "cache"))
        assert everything(index) == written([2]) and "SECRET" not in index.location + index.places[0]
    for code in (403, 404, 503):
        with answering(status(code)) as (url, _), pytest.raises(DataError, match=r"http://\*\*\*@127") as refused:
            cache_in(tmp_path).read(f"{secret(url)}/dataset.json")
        assert "SECRET" not in str(refused.value)
    with pytest.raises(DataError, match="needs a cache") as refused:
        ShardIndex.open("http://me:SECRET@server/x")
    texts = [str(refused.value), *(record.getMessage() for record in caplog.records)]
    assert len(texts) > 2 and not any("SECRET" in text for text in texts)


def test_reasons_are_never_empty():
    class FSTimeoutError(Exception):
        pass

    assert reason_of(FSTimeoutError()) == "FSTimeoutError: no answer in time"
    assert reason_of(ValueError()) == "ValueError" and reason_of(OSError("x.")) == "OSError: x"


def test_errors_of_other_file_systems():
    class Refused(Exception):
        code = 403

    def fails(error: Exception) -> Callable[[], None]:
        def work() -> None:
            calls.append(1)
            raise error

        return work

    for error, times in (
        (Refused("no"), 1),
        (FileNotFoundError("x"), 1),
        (OSError(28, "No space left"), 1),
        (KeyError("x"), 8),
    ):
        calls: list[int] = []
        with pytest.raises(DataError, match="s3://b/f"):
            attempt("s3://b/f", fails(error), 0)
        assert len(calls) == times, error


@pytest.mark.fault("a server sends more, or less, than was promised", does="cuts it off", lost="nothing")
def test_a_server_that_sends_more_is_cut_off(tmp_path):
    def endless(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            while True:
                request.wfile.write(bytes(10**6))
                sent[0] += 10**6
        except OSError:  # the client has hung up
            gone.set()

    sent, gone = [0], threading.Event()
    with answering(endless) as (url, _):
        with pytest.raises(FinalError, match="sends more than the 1,000 bytes that are allowed: cut off"):
            list(pieces(url, 1000))
        assert gone.wait(10) and sent[0] < 10**8
    with answering(body(bytes(100))) as (url, _), pytest.raises(FinalError, match="has 100 bytes, 99 are allowed"):
        list(pieces(url, 99))
    with answering(body(bytes(100), stated=200)) as (url, _), pytest.raises(OSError, match="ended after 100 of 200 bytes"):
        list(pieces(url, 300))
    with answering(body(bytes(100), stated=0)) as (url, _):
        assert b"".join(pieces(url, 100)) == bytes(100)
    with answering(body(bytes(100))) as (url, asked):
        with pytest.raises(DataError, match="has 100 bytes, 99 are allowed"):
            attempt(url, lambda: list(pieces(url, 99)), 0)
        assert len(asked) == 1
        with pytest.raises(DataError) as refused:
            attempt(url, lambda: list(pieces(url, 99)), 0)
        assert not isinstance(refused.value, LostShard), "a server that lies is not a shard that is away"


@pytest.mark.fault(
    "a shard at a URL changed at equal size (10e)", does="refuses it by its sha256, after a second look", lost="nothing"
)
def test_the_hash_of_a_remote_shard(tmp_path):
    folder = write_shards(tmp_path / "shards", [2, 2])
    manifest = json.loads((folder / "dataset.json").read_text())
    for shard in manifest["shards"]:
        shard["sha256"] = hashlib.sha256((folder / shard["file"]).read_bytes()).hexdigest()
    (folder / "dataset.json").write_text(json.dumps(manifest))
    tar = folder / "data-000001.tar"
    with served(folder) as server:
        index = ShardIndex.open(server.url, cache=cache_in(tmp_path / "a"))
        assert everything(index) == written([2, 2])
        tar.write_bytes(tar.read_bytes().replace(b'"number": 2', b'"number": 7'))
        index = ShardIndex.open(server.url, cache=cache_in(tmp_path / "b"))
        index.read(0, 0)
        server.requests.clear()
        with pytest.raises(
            DataError, match=r"data-000001\.tar is not the file that dataset\.json describes \(its sha256 differs\)"
        ):
            index.read(1, 0)
        assert server.requests["data-000001.tar"] == retrying.ATTEMPTS_AT_CONTENT
    assert not list((tmp_path / "b").rglob("data-000001.tar")) and not list((tmp_path / "b").rglob("*.part"))


@pytest.mark.fault(
    "a server redirects to a file, to a cloud's metadata, or into a private network", does="does not follow", lost="nothing"
)
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("file:///etc/passwd", "."),
        ("ftp://127.0.0.1/x", "only http and https"),
        ("http://169.254.169.254/latest/meta-data", "a link-local address, .*: never followed"),
        ("http://[::ffff:169.254.169.254]/x", "a link-local address"),
        ("http://[fe80::1]/x", "a link-local address"),
    ],
)
def test_redirects_of_a_server(target, words):
    with answering(status(302, Location=target)) as (url, asked):
        with pytest.raises(FinalError, match=words):
            list(pieces(url, 10**6))
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("source", "target", "followed"),
    [
        ("https://93.184.215.14/a", "https://93.184.215.15/a", True),
        ("https://93.184.215.14/a", "http://93.184.215.14/a", False),
        ("http://93.184.215.14/a", "https://93.184.215.14/a", True),
        ("http://93.184.215.14/a", "http://10.0.0.1/a", False),
        ("http://93.184.215.14/a", "http://127.0.0.1/a", False),
        ("http://93.184.215.14/a", "http://[fd00:ec2::254]/a", False),
        ("http://93.184.215.14/a", "http://100.100.100.200/a", False),
        ("http://93.184.215.14/a", "http://168.63.129.16/a", False),
        ("http://10.0.0.2/a", "http://168.63.129.16/a", False),
        ("http://10.0.0.2/a", "http://[64:ff9b::a9fe:a9fe]/a", False),
        ("http://93.184.215.14/a", "http://[2002:0a00:0005::1]/a", False),
        ("http://93.184.215.14/a", "http://::ffff:10.0.0.5:80/a", False),
        ("http://93.184.215.14/a", "http://10.0.0.%35/a", False),
        ("http://10.0.0.2/a", "http://10.0.0.1/a", True),
        ("http://10.0.0.2/a", "http://169.254.169.254/a", False),
        ("http://10.0.0.2/a", "http://93.184.215.14/a", True),
        ("http://10.0.0.2/a", "gopher://10.0.0.2/a", False),
    ],
)
def test_where_redirects_may_lead(source, target, followed):
    if followed:
        Hosts().check_redirect(source, target)
    else:
        with pytest.raises(FinalError, match="redirects to"):
            Hosts().check_redirect(source, target)


def test_a_good_redirect_is_followed_and_takes_no_password_along(tmp_path):
    seen: list[str | None] = []

    def moved(request: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(request.headers["Authorization"])
        if request.path == "/old":
            status(302, Location="/new")(request)
        else:
            body(b"content")(request)

    with answering(moved) as (url, _):
        assert b"".join(pieces(url.replace("http://", "http://me:p%40ss@") + "/old", 100)) == b"content"
    assert seen == ["Basic bWU6cEBzcw==", None]


def test_a_loop_of_redirects_and_odd_urls_end():
    with answering(status(302, Location="/again")) as (url, asked):
        with pytest.raises(FinalError):
            list(pieces(url, 100))
    assert len(asked) < 20
    for url in ("http://[::1/x", "http://127.0.0.1:x/y", "http://127.0.0.1/a b"):
        with pytest.raises(FinalError, match="is not a legal URL"):
            list(pieces(url, 100))
