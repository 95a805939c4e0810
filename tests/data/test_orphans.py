"""A loader worker ends with its rank, also when its queue is full and nobody reads it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from megaunigame.parallel.processes import GONE, LIVES, state_of
from tests.multi_process.launcher import REPOSITORY

PARENT = """
import multiprocessing, os, time

def work(queue):
    end_with_parent() if {ends} else None
    print(os.getpid(), flush=True)
    queue.put(b"x" * 10_000_000)  # more than a pipe holds

from megaunigame.data.loading.orphans import end_with_parent
process = multiprocessing.get_context("fork")
queue = process.Queue()
process.Process(target=work, args=(queue,)).start()
time.sleep(100)
"""


@pytest.mark.fault("kill -9 of a rank with loader workers", does="its workers end with it", lost="nothing more")
@pytest.mark.parametrize("ends", [True, False])
def test_a_worker_whose_rank_was_killed(ends):
    """Without the call it lives: the test would notice if the kernel, or torch, made it needless."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(ends=ends)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        worker = int(parent.stdout.readline())
        assert state_of(worker) == LIVES
        parent.kill()
        until = time.monotonic() + (10 if ends else 1)
        while state_of(worker) != GONE and time.monotonic() < until:
            time.sleep(0.05)
        assert (state_of(worker) == GONE) is ends
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
