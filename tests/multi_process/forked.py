"""Worlds of several sizes one after the other in one launch: the parent has imported everything, ranks are forked from it."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from megaunigame.parallel.ranks import Ranks, start_world
from tests.multi_process.launcher import free_port


def in_world(size: int, work: Callable[[Ranks], Any]) -> None:
    """`work(world)` on `size` ranks, each a fork of this process, which must not have threads or a process group.

    Raises AssertionError when a rank fails; the others are killed then.
    """
    sys.stdout.flush()
    os.environ.update(MASTER_PORT=str(free_port()), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    ranks = {_fork(rank, work): rank for rank in range(size)}
    try:
        while ranks:
            process, status = os.wait()
            rank = ranks.pop(process)
            assert status == 0, f"rank {rank} of {size} ended with status {status}"
    finally:
        for process in ranks:
            os.kill(process, signal.SIGKILL)


def _fork(rank: int, work: Callable[[Ranks], Any]) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        world = start_world(1)
        work(world)
        world.close()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
