"""Start Python processes, one of a script or one per rank as a launcher would, and report what each one said."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.warm.python import WarmProcess, can_start, servers

REPOSITORY = Path(__file__).resolve().parents[2]
GRACE_SECONDS = 3.0
"""After the first failure the other ranks get this long to fail by themselves and say what they were waiting for."""
TAIL_LINES = 40


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_script(
    *command: object, check: bool = False, timeout: float | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python command` in the repository, to its end; what it says is captured."""
    words, environment = [str(word) for word in command], os.environ if env is None else env
    if words[0] == "-c" or not can_start(environment):
        line = [sys.executable, *words]
        return subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=check, timeout=timeout, env=env)
    with tempfile.TemporaryDirectory() as folder:
        said, errors = Path(folder, "stdout"), Path(folder, "stderr")
        process = servers(1)[0].start(words, REPOSITORY, environment, said, errors)
        try:
            code = process.wait(timeout)
        finally:
            process.stop()
        done = subprocess.CompletedProcess(words, code, said.read_text(), errors.read_text())
    if check and code:
        raise subprocess.CalledProcessError(code, words, done.stdout, done.stderr)
    return done


def run_ranks(
    module: str, world_size: int, *args: object, timeout: float = 120.0, compare_collectives: bool = True
) -> list[str]:
    """Run `python -m module args` as ranks 0 .. world_size-1 and return the output (stdout and stderr) of each.

    `compare_collectives`: torch compares every collective of the ranks, before it runs. That takes a third of the time of a
    launch: one whose kinds of steps another launch runs compared can do without.

    Raises AssertionError with the last lines of every rank when one exits non-zero, or when `timeout` seconds have
    passed. No process outlives the call.
    """
    shared = dict(
        os.environ,
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
        TORCH_DISTRIBUTED_DEBUG="DETAIL" if compare_collectives else "OFF",
        PYTHONUNBUFFERED="1",
    )
    command = ["-m", module, *map(str, args)]
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, f"rank{rank}.log") for rank in range(world_size)]
        processes: list[WarmProcess] = []
        try:
            # Two servers: deepspeed's launcher gives no rank the order of sets of another either.
            starts = servers(min(world_size, 2))
            for rank, log in enumerate(logs):
                environment = dict(shared, RANK=str(rank), LOCAL_RANK=str(rank))
                assert can_start(environment), "ranks begin in the environment of tests"
                processes.append(starts[rank % len(starts)].start(command, REPOSITORY, environment, log, log))
            in_time = _wait(processes, timeout)
            codes = [process.poll() for process in processes]
        finally:
            for process in processes:
                process.stop()
        outputs = [log.read_text(errors="replace") for log in logs]
    if any(code != 0 for code in codes):
        reason = "a rank failed" if in_time else f"not finished after {timeout:g} s"
        raise AssertionError(f"{' '.join(command[1:])} on {world_size} ranks: {reason}\n{_tails(codes, outputs)}")
    return outputs


def _wait(processes: list[WarmProcess], timeout: float) -> bool:
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


def _tails(codes: list[int | None], outputs: list[str]) -> str:
    """The last lines of every rank under a heading that says how it ended."""
    parts = []
    for rank, (code, output) in enumerate(zip(codes, outputs, strict=True)):
        ended = "still running, stopped" if code is None else f"exit code {code}"
        parts.append("\n".join([f"--- rank {rank}: {ended}", *output.splitlines()[-TAIL_LINES:]]))
    return "\n".join(parts)
