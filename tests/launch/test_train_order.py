"""In which order a run is made: who holds the folder clears it before anything looks for a checkpoint."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest

from megaunigame.errors import CheckpointError, Interrupted
from megaunigame.parallel.interruption import Interruption
from megaunigame.training import running
from tests.worlds import OneRank


class Noted:
    """Replaces parts of megaunigame/training/running.py, and notes the order of their calls."""

    def __init__(self, monkeypatch):
        self.patch, self.calls = monkeypatch.setattr, []
        engine = SimpleNamespace(timeout_minutes=1, deterministic=False, sequence_ranks=1)
        self.recipe = SimpleNamespace(data={}, output="runs/a", engine=engine, name="a")
        self.patch(running, "as_yaml", lambda *_: "")
        self.replace("watch", self.watched())
        self.replace("start_world", OneRank())
        for name in ("use_flight_recorder", "claim", "rank_log", "make_recorder_folder", "clear_leftovers"):
            self.replace(name)
        self.replace("release")
        self.replace("RunRecord")

    def train(self):
        running.train(self.recipe, Interruption(), sources={}, command=["megaunigame", "train", "a.yaml"])

    def replace(self, name, result=None):
        self.patch(running, name, self.noted(name, result))

    def noted(self, name, result=None):
        def call(*_given, **_named):
            self.calls.append(name)
            if isinstance(result, Exception):
                raise result
            return result

        return call

    @contextmanager
    def watched(self):
        yield
        self.calls.append("end of watch")


@pytest.mark.fault(
    "an error between the claim of the run folder and step 1",
    does="the folder is given back: the next run need not wait for signs of life",
    lost="",
)
def test_an_error_before_step_1_gives_the_folder_back(monkeypatch):
    noted = Noted(monkeypatch)
    noted.replace("Trainer", CheckpointError("damaged"))
    with pytest.raises(CheckpointError, match="damaged"):
        noted.train()
    begin = ["use_flight_recorder", "start_world", "watch"]
    claimed = ["claim", "rank_log", "make_recorder_folder", "clear_leftovers"]
    assert noted.calls == [*begin, *claimed, "Trainer", "release"]


@pytest.mark.parametrize("interrupted", ["", "interrupted by SIGTERM after step 3"])
def test_the_report_is_watched_and_the_connections_are_closed_after_the_watch(monkeypatch, interrupted):
    noted = Noted(monkeypatch)
    trainer = SimpleNamespace(
        recipe=noted.recipe,
        interrupted=interrupted,
        resumed_from=None,
        folder="runs/a",
        parts=SimpleNamespace(origin=dict),
        describe=lambda: "",
        saves=SimpleNamespace(make_room=lambda: None),
        fit=noted.noted("fit"),
    )
    noted.replace("Trainer", trainer)
    noted.replace("report")
    noted.replace("leave")
    with pytest.raises(Interrupted) if interrupted else nullcontext():
        noted.train()
    assert noted.calls[-6:] == ["RunRecord", "fit", "report", "release", "end of watch", "leave"]
