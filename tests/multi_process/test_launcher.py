"""The launcher of the multi-process tests: it collects, it reports, and no process outlives it."""

from __future__ import annotations

import os
import re
import time

import pytest

from tests.multi_process.launcher import GRACE_SECONDS, run_ranks

pytestmark = pytest.mark.ranks

PROGRAM = "tests.multi_process.all_reduce"


def assert_ended(text: str, count: int) -> None:
    """Every `pid N` printed in `text` is gone."""
    pids = [int(pid) for pid in re.findall(r"^pid (\d+)$", text, re.MULTILINE)]
    assert len(pids) == count
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("world_size", [1, 3])
def test_output_of_every_rank(world_size):
    outputs = run_ranks(PROGRAM, world_size, "sum", timeout=60)
    expected = world_size * (world_size + 1) // 2
    assert len(outputs) == world_size
    for output in outputs:
        assert f"sum {expected} of {world_size}" in output


def test_failed_rank_is_named_and_the_waiting_one_is_stopped():
    start = time.monotonic()
    with pytest.raises(AssertionError) as failure:
        run_ranks(PROGRAM, 2, "fail", timeout=60)
    assert time.monotonic() - start < 30 + GRACE_SECONDS
    text = str(failure.value)
    assert "a rank failed" in text
    assert re.search(r"--- rank 1: exit code 1\n(.*\n)*.*RuntimeError: rank 1 gives up", text)
    assert_ended(text, 2)


def test_timeout_stops_all_ranks():
    with pytest.raises(AssertionError, match="not finished after 4 s") as failure:
        run_ranks(PROGRAM, 2, "hang", timeout=4)
    text = str(failure.value)
    assert text.count("still running, stopped") == 2
    assert_ended(text, 2)


def test_disagreeing_collectives_are_an_error():
    with pytest.raises(AssertionError, match="Detected mismatch between collectives"):
        run_ranks(PROGRAM, 2, "mismatch", timeout=60)
