"""The items of a job, batch by batch."""

from __future__ import annotations

import threading
import time

import pytest

from megaunigame.errors import Interrupted
from megaunigame.inference.job import Job
from megaunigame.inference.running import _results, run_job
from megaunigame.inference.team import Team
from megaunigame.parallel.environment import Place


@pytest.mark.timeout(20)
def test_an_end_does_not_wait_for_a_picture_that_a_file_system_does_not_give():
    come = threading.Event()

    def prepare(item: int) -> int:
        if item:
            come.wait(15)
        return item

    def compute(items):
        raise Interrupted("SIGTERM")

    begun = time.monotonic()
    try:
        with pytest.raises(Interrupted):
            list(_results([range(0, 1), range(1, 2)], compute, prepare, lambda item, error: {}))
        assert time.monotonic() - begun < 5
    finally:
        come.set()


def test_weights_are_checked_once_by_rank_0_before_they_are_loaded_and_only_when_there_is_something_to_do(tmp_path):
    seen: list[str] = []

    def load():
        seen.append("load")
        return lambda items: [{"answer": item} for item in items]

    def launch() -> list:
        job = Job(tmp_path / "out", tmp_path / "job", {}, ["a", "b"])
        steps = {"check": lambda: seen.append("check"), "load": load, "prepare": lambda item: item, "failed": None}
        return run_job(job, Team(Place(0, 1, 0, alone=True)), batch=1, unit="item", **steps)

    assert launch() == launch() == [{"answer": 0}, {"answer": 1}]
    assert seen == ["check", "load"]
