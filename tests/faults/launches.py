"""Launches of `launch/train.py` on forked ranks: started, watched, killed, and never left running."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.moments import Moment
from tests.multi_process.launcher import REPOSITORY, free_port

SHOWN_LINES = 30
"""Of the log of each rank, in a failure."""


@dataclass
class Launch:
    """Ranks that were started together."""

    server: ForkServer
    pids: list[int]
    logs: list[Path]
    started: float = field(default_factory=time.monotonic)
    codes: dict[int, int] = field(default_factory=dict)
    """Rank -> exit code; -n: killed by signal n."""
    ended: dict[int, float] = field(default_factory=dict)
    """Rank -> seconds from the start to its end, to a few hundredths."""

    def poll(self) -> bool:
        """Whether all ranks have ended."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes and pid in self.server.codes():
                self.codes[rank] = self.server.known[pid]
                self.ended[rank] = self.now()
        return len(self.codes) == len(self.pids)

    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def wait(self, seconds: float) -> dict[int, int]:
        """The exit code of every rank. Raises AssertionError, with the logs, when some rank still runs after `seconds`."""
        deadline = time.monotonic() + seconds
        try:
            while not self.poll():
                assert time.monotonic() < deadline, f"still running after {seconds:g} s\n{self.said()}"
                time.sleep(0.03)
        finally:
            self.kill()
        return self.codes

    def wait_for_first(self, seconds: float) -> int:
        """The first rank that has ended."""
        deadline = time.monotonic() + seconds
        while not self.codes:
            assert time.monotonic() < deadline, f"no rank ended within {seconds:g} s\n{self.said()}"
            self.poll()
            time.sleep(0.03)
        return min(self.codes)

    def wait_for_text(self, text: str, rank: int, seconds: float) -> None:
        """Until the log of `rank` has `text`."""
        deadline = time.monotonic() + seconds
        while text not in self.log(rank):
            assert time.monotonic() < deadline and not self.poll(), f"{text!r} did not come\n{self.said()}"
            time.sleep(0.03)

    def wait_for_step(self, seconds: float) -> float | None:
        """Seconds from the start to the first line of a step on the console; None when all ranks ended without one."""
        deadline = time.monotonic() + seconds
        while not re.search(r"^step +\d+/", self.log(0), re.MULTILINE):
            assert time.monotonic() < deadline, f"no step within {seconds:g} s\n{self.said()}"
            if self.poll():
                return None
            time.sleep(0.03)
        return self.now()

    def signal(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.pids[rank], number)

    def kill(self) -> None:
        """End what is left, loader workers included."""
        for pid in self.pids:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # everything in the group has ended

    def log(self, rank: int) -> str:
        return self.logs[rank].read_text(errors="replace") if self.logs[rank].exists() else ""

    def everything(self) -> str:
        """The logs of all ranks."""
        return "\n".join(self.log(rank) for rank in range(len(self.logs)))

    def said(self) -> str:
        """The last lines of every rank, for a failure."""
        parts = []
        for rank in range(len(self.pids)):
            ended = f"exit code {self.codes[rank]}" if rank in self.codes else "running"
            parts.append("\n".join([f"--- rank {rank}: {ended}", *self.log(rank).splitlines()[-SHOWN_LINES:]]))
        return "\n".join(parts)


class ForkServer:
    """The process that has imported everything. Use as a context: it ends with all its ranks."""

    def __init__(self, folder: Path):
        self.folder, self.launches = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        self.errors = folder / "fork_server.log"
        self.known: dict[int, int] = {}
        """Process id -> exit code."""
        self.asked = 0.0

    def __enter__(self) -> ForkServer:
        with self.errors.open("w") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.fork_server"],
                cwd=REPOSITORY,
                env={**os.environ, "TORCH_DISTRIBUTED_DEBUG": "OFF", "PYTHONUNBUFFERED": "1"},  # as a run has it
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
            )
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def start(
        self,
        arguments: Sequence[object],
        world: int = 1,
        moments: Sequence[Moment] = (),
        environment: Mapping[str, str] | None = None,
        networks: Sequence[str] = (),
        address: str = "127.0.0.1",
        note_keys: bool = False,
    ) -> Launch:
        """`launch/train.py arguments` on `world` ranks. `networks`: the host of each rank, as a network namespace; `note_keys`:
        write the sample keys of every step to `keys_of`(rank)."""
        self.launches += 1
        logs = [self.folder / f"launch-{self.launches:03d}-rank{rank}.log" for rank in range(world)]
        order = {
            "do": "start",
            "arguments": [str(argument) for argument in arguments],
            "world": world,
            "moments": [dataclasses.asdict(moment) for moment in moments],
            "environment": dict(environment or {}),
            "networks": list(networks),
            "address": address,
            "port": free_port(),
            "logs": [str(log) for log in logs],
            "keys": [str(self.keys_of(rank)) for rank in range(world)] if note_keys else [],
        }
        return Launch(self, self._ask(order)["pids"], logs)

    def keys_of(self, rank: int) -> Path:
        """Of a rank of the last launch."""
        return self.folder / f"launch-{self.launches:03d}-rank{rank}.keys"

    def codes(self) -> dict[int, int]:
        """The exit codes known so far; asks at most every 20 ms."""
        if time.monotonic() - self.asked > 0.02:
            self.known |= {int(pid): code for pid, code in self._ask({"do": "ended"})["codes"].items()}
            self.asked = time.monotonic()
        return self.known

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # frameworks greet on the same stream
                return json.loads(line)
        raise AssertionError(f"The fork server has ended.\n{self.errors.read_text()[-3000:]}")
