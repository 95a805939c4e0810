"""Python commands without the seconds of their imports: forks of processes that have imported all (tests/warm/server.py).

A command that begins in another environment than tests do starts a Python of its own, because modules read variables when they
are imported. Each rank of a launch has a server of its own, so that ranks differ in how they order a set, as they do in a run.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
OF_EACH_COMMAND = {
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCH_DISTRIBUTED_DEBUG", "PYTHONUNBUFFERED", "PYTEST_CURRENT_TEST"),
    # What a run sets for itself before it opens a device or a process group; a test that did so in this process leaves it.
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),
    *("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_FR_DUMP_TEMP_FILE"),
}
"""Variables that a fork reads, or the server sets again in it."""
OF_IMPORTS = {"LD_LIBRARY_PATH", "PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR"}
"""Variables that cv2 and torch set when they are imported."""


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    """What a server has once and for all."""
    return {name: value for name, value in environment.items() if name not in OF_EACH_COMMAND | OF_IMPORTS}


AT_START = _fixed(os.environ)
"""The environment of tests."""


def can_start(environment: Mapping[str, str]) -> bool:
    """Whether a fork of a server is what a new Python in this environment would be."""
    return _fixed(environment) == AT_START


class WarmProcess:
    """A command that runs, as `subprocess.Popen`: `pid`, `poll`, `wait`."""

    def __init__(self, server: Server, pid: int):
        self.server, self.pid = server, pid

    def poll(self) -> int | None:
        return self.server.codes().get(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(0.02)
        return code

    def stop(self) -> None:
        """End the command and what it has started."""
        for kill in (os.killpg, os.kill):  # a fork that has just begun leads no group yet
            try:
                kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # has ended
        self.wait()


class Server:
    """One process that has imported everything."""

    def __init__(self) -> None:
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm.server"],
            cwd=REPOSITORY,
            env=AT_START,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.known: dict[int, int] = {}
        """Process id -> exit code."""
        self.is_ready = False

    def await_ready(self) -> None:
        """Until everything is imported."""
        if not self.is_ready:
            self._read()
            self.is_ready = True

    def start(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], stdout: Path, stderr: Path
    ) -> WarmProcess:
        """`python command` in `folder`; what it says is added to the files, which may be one."""
        files = {"stdout": str(stdout), "stderr": str(stderr)}
        given = {"command": list(command), "folder": str(folder), "environment": dict(environment), **files}
        return WarmProcess(self, self._ask({"do": "start", **given})["pid"])

    def codes(self) -> dict[int, int]:
        """The exit codes known so far."""
        self.known |= {int(pid): code for pid, code in self._ask({"do": "ended"})["codes"].items()}
        return self.known

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise AssertionError(f"The process that starts Python commands has ended.\n{self.errors.read()[-3000:]}")
        return json.loads(line)


_SERVERS: list[Server] = []


def servers(count: int) -> list[Server]:
    """The first `count` servers of this process, ready; they start when they are first asked for, and end with it."""
    while len(_SERVERS) < count:
        _SERVERS.append(Server())
        atexit.register(_SERVERS[-1].close)
    for server in _SERVERS[:count]:
        server.await_ready()
    return _SERVERS[:count]
