"""In which order launch/train.py makes a run: who holds the folder clears it before anything looks for a checkpoint."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from megaunigame.errors import CheckpointError
from tests.worlds import OneRank


@pytest.mark.fault(
    "an error between the claim of the run folder and step 1",
    does="the folder is given back: the next run need not wait for signs of life",
    lost="",
)
def test_an_error_before_step_1_gives_the_folder_back(monkeypatch):
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # the script drops its own folder
    from launch import train

    recipe, calls = (
        SimpleNamespace(data={}, output="runs/a", engine=SimpleNamespace(timeout_minutes=1, deterministic=False)),
        [],
    )

    def noted(name, result=None):
        def call(*_given, **_named):
            calls.append(name)
            if isinstance(result, Exception):
                raise result
            return result

        return call

    monkeypatch.setattr(train, "load_recipe", lambda *_: recipe)
    monkeypatch.setattr(train, "start_world", lambda *_given, **_named: OneRank())
    monkeypatch.setattr(train, "watch", lambda *_: nullcontext())
    for name in ("pack_sources", "use_flight_recorder", "claim", "rank_log", "clear_leftovers", "release"):
        monkeypatch.setattr(train, name, noted(name))
    monkeypatch.setattr(train, "Trainer", noted("Trainer", CheckpointError("damaged")))
    with pytest.raises(CheckpointError, match="damaged"):
        train.main(["recipe.yaml"])
    assert calls == ["pack_sources", "use_flight_recorder", "claim", "rank_log", "clear_leftovers", "Trainer", "release"]
