"""A loader worker does not outlive the process that made it."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import time

import pytest

from megaunigame.data.loading.orphans import end_with_parent

SECONDS = 10.0


def _work(ready: int) -> None:
    end_with_parent()
    os.write(ready, b"ready")
    time.sleep(60)


@pytest.mark.fault(
    "rank killed while its loader workers wait",
    does="its workers end with it, so the other ranks see closed connections at once",
    lost="work since the last save",
)
def test_a_worker_ends_with_a_killed_parent():
    reading, writing = os.pipe()  # held open by the worker: its end closes the pipe
    parent = os.fork()
    if parent == 0:
        os.close(reading)
        worker = multiprocessing.get_context("fork").Process(target=_work, args=(writing,))
        worker.start()
        worker.join()
        os._exit(0)
    os.close(writing)
    try:
        assert os.read(reading, 5) == b"ready"
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        readable, _, _ = select.select([reading], [], [], SECONDS)
        assert readable and os.read(reading, 1) == b"", "the worker lives on"
    finally:
        os.close(reading)
