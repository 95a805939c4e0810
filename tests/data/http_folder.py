"""A folder served over HTTP from a thread, which counts requests and can refuse some."""

from __future__ import annotations

import functools
import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Served:
    """What a test knows of its server."""

    def __init__(self, url: str):
        self.url = url
        self.requests: Counter[str] = Counter()
        """File name -> requests for it, refused ones included."""
        self.refuse = 0
        """Refuse this many further requests: with status 503 and by cutting the answer short, in turn."""


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """Serve `folder` until the block ends."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            with lock:
                about.requests[name] += 1
                refused = about.refuse > 0
                about.refuse -= refused
            if refused and about.requests[name] % 2:
                self.send_error(503)
            elif refused:
                content = (folder / name).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            else:
                super().do_GET()

        def log_message(self, *args: object) -> None:
            """No lines on stderr."""

    lock = threading.Lock()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        about = Served(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield about
        server.shutdown()
        thread.join()
