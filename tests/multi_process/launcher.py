"""Start Python processes, one of a script or one per rank as a launcher would, and report what each one said."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
GRACE_SECONDS = 3.0
"""After the first failure the other ranks get this long to fail by themselves and say what they were waiting for."""
TAIL_LINES = 40


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_script(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python command` in the repository, to its end; what it says is captured."""
    line = [sys.executable, *map(str, command)]
    return subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, **options)


def run_ranks(module: str, world_size: int, *args: object, timeout: float = 120.0) -> list[str]:
    """Run `python -m module args` as ranks 0 .. world_size-1 and return the output (stdout and stderr) of each.

    Raises AssertionError with the last lines of every rank when one exits non-zero, or when `timeout` seconds have
    passed. No process outlives the call.
    """
    shared = dict(
        os.environ,
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
        TORCH_DISTRIBUTED_DEBUG="DETAIL",
        PYTHONUNBUFFERED="1",
    )
    command = [sys.executable, "-m", module, *map(str, args)]
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, f"rank{rank}.log") for rank in range(world_size)]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, log in enumerate(logs):
                with log.open("wb") as sink:
                    processes.append(
                        subprocess.Popen(
                            command,
                            cwd=REPOSITORY,
                            env=dict(shared, RANK=str(rank), LOCAL_RANK=str(rank)),
                            stdin=subprocess.DEVNULL,
                            stdout=sink,
                            stderr=subprocess.STDOUT,
                            start_new_session=True,  # so that its data-loader workers can be stopped with it
                        )
                    )
            in_time = _wait(processes, timeout)
            codes = [process.poll() for process in processes]
        finally:
            for process in processes:
                _stop(process)
        outputs = [log.read_text(errors="replace") for log in logs]
    if any(code != 0 for code in codes):
        reason = "a rank failed" if in_time else f"not finished after {timeout:g} s"
        raise AssertionError(f"{' '.join(command[1:])} on {world_size} ranks: {reason}\n{_tails(codes, outputs)}")
    return outputs


def _wait(processes: list[subprocess.Popen[bytes]], timeout: float) -> bool:
    """Wait until all have ended, or one has failed and its grace is over. False when the time ran out."""
    deadline = time.monotonic() + timeout
    give_up = None
    while any(process.poll() is None for process in processes):
        now = time.monotonic()
        if give_up is None and any(process.poll() not in (None, 0) for process in processes):
            give_up = now + GRACE_SECONDS
        if give_up is not None and now > give_up:
            return True
        if now > deadline:
            return False
        time.sleep(0.05)
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the process group that `process` leads."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # everything in the group has already ended
    process.wait()


def _tails(codes: list[int | None], outputs: list[str]) -> str:
    """The last lines of every rank under a heading that says how it ended."""
    parts = []
    for rank, (code, output) in enumerate(zip(codes, outputs, strict=True)):
        ended = "still running, stopped" if code is None else f"exit code {code}"
        parts.append("\n".join([f"--- rank {rank}: {ended}", *output.splitlines()[-TAIL_LINES:]]))
    return "\n".join(parts)
