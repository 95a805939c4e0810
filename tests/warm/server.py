"""Runs Python commands as forks of this process, which has imported everything: each costs seconds less.

    python -m tests.warm.server     started by tests/warm/python.py; one JSON object per line, in and out

What a command does after the fork is what `python SCRIPT ...` or `python -m MODULE ...` does after its imports. This process
starts no thread, opens no process group and touches no device. Without its reader it ends, and all commands with it.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import signal
import sys
import types
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from tests.warm.everything import import_all


def serve(orders: TextIO, answers: TextIO) -> dict[str, Any] | None:
    """Answer orders to their end. In a fork: the order that it has to carry out."""
    running: list[int] = []
    print(json.dumps({"ready": os.getpid()}), file=answers, flush=True)
    for line in orders:
        order = json.loads(line)
        if order["do"] == "start":
            pid = os.fork()
            if pid == 0:
                return order
            running.append(pid)
            answer: dict[str, Any] = {"pid": pid}
        else:
            codes = ended()
            running = [pid for pid in running if pid not in codes]
            answer = {"codes": codes}
        print(json.dumps(answer), file=answers, flush=True)
    for pid in running:
        os.killpg(pid, signal.SIGKILL)
    return None


def ended() -> dict[int, int]:
    """Process id -> exit code of the forks that have ended since the last call; -n: killed by signal n."""
    codes = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return codes
        if pid == 0:
            return codes
        codes[pid] = os.waitstatus_to_exitcode(status)


def carry_out(order: dict[str, Any]) -> None:
    """Be the process that a shell would start for the order's command."""
    os.setsid()  # what it starts is stopped with it
    nothing = os.open(os.devnull, os.O_RDONLY)
    said, errors = (os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for name in ("stdout", "stderr"))
    for target, source in ((0, nothing), (1, said), (2, errors)):
        os.dup2(source, target)
    for given in (nothing, said, errors):
        os.close(given)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=unbuffered, line_buffering=unbuffered or stream is sys.stderr)  # type: ignore[union-attr]
    random.seed()
    np.random.seed()
    torch.distributed.set_debug_level_from_env()
    what, *arguments = order["command"]
    if what == "-m":
        sys.argv, sys.path[0] = arguments, order["folder"]
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        script = str(Path(what).absolute())
        sys.argv, sys.path[0] = order["command"], str(Path(script).parent)
        module = types.ModuleType("__main__")
        module.__file__ = script
        sys.modules["__main__"] = module
        exec(compile(Path(script).read_bytes(), script, "exec"), module.__dict__)


def main() -> None:
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")  # a command has others
    os.dup2(2, 1)
    import_all()
    order = serve(orders, answers)
    if order is not None:
        orders.close()
        answers.close()
        carry_out(order)


if __name__ == "__main__":
    main()
