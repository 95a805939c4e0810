"""Starts the ranks of a launch as forks of one process that has imported everything: a launch then costs seconds less.

    python -m tests.faults.fork_server     started by tests/faults/launches.py; one JSON object per line, in and out

This process starts no thread, opens no process group and touches no device: what a rank does after the fork is what
`python launch/train.py` does after its imports. Without its reader it ends, and all ranks with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any, NoReturn

from megaunigame.command_line import run_command
from tests.faults import moments, sample_keys
from tests.warm.everything import import_all
from tests.warm.server import ended

NETWORK = 0x40000000
"""CLONE_NEWNET."""


def enter_network(name: str) -> None:
    """The rank lives on the host `name`: a network namespace."""
    with open(f"/var/run/netns/{name}") as host:
        if ctypes.CDLL(None, use_errno=True).setns(host.fileno(), NETWORK):
            raise OSError(ctypes.get_errno(), f"network namespace {name}")


def be_rank(order: dict[str, Any], rank: int) -> NoReturn:
    """What a launcher does for a rank, then the launch script."""
    os.setsid()  # its loader workers are stopped with it
    log = os.open(order["logs"][rank], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    world, nodes = order["world"], order["networks"]
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK="0" if nodes else str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE="1" if nodes else str(world),
        MASTER_ADDR=order["address"],
        MASTER_PORT=str(order["port"]),
        **order["environment"],
    )
    if nodes:
        enter_network(nodes[rank])
    moments.plant([moments.Moment(**given) for given in order["moments"] if given["rank"] == rank])
    if order["keys"]:
        sample_keys.note(order["keys"][rank])
    sys.argv = ["launch/train.py", *order["arguments"]]
    run_command("train", order["arguments"])


def start(order: dict[str, Any]) -> list[int]:
    """Fork the ranks; returns their process ids."""
    pids = []
    for rank in order.get("ranks") or range(order["world"]):
        pid = os.fork()
        if pid == 0:
            be_rank(order, rank)
        pids.append(pid)
    return pids


def main() -> None:
    import_all()
    started: list[int] = []
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "start":
            pids = start(order)
            started += pids
            answer: dict[str, Any] = {"pids": pids}
        else:
            codes = ended()
            started = [pid for pid in started if pid not in codes]
            answer = {"codes": codes}
        print(json.dumps(answer), flush=True)
    for pid in started:
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
