"""run.json of a run: over several launches, and after a launch that could not finish writing it."""

from __future__ import annotations

import json

import pytest

from megaunigame.monitoring.model_card import _source
from megaunigame.monitoring.run_record import RunRecord


def record(folder, **sources: str) -> dict:
    RunRecord(folder, name="x", command="c", world_size=2, recipe="name: x\n", plan="p", origin={}, sources=sources)
    return json.loads((folder / "run.json").read_text())


def test_a_second_launch_keeps_what_the_first_recorded(tmp_path):
    first, second = record(tmp_path), record(tmp_path)
    assert (
        second["started"] == first["started"] and second["launches"][:1] == first["launches"] and len(second["launches"]) == 2
    )


def test_what_was_packed_is_remembered_and_named_by_the_card(tmp_path):
    """A resumed run may name the shards in place of their source."""
    record(tmp_path, packed="llava.json")
    sources = record(tmp_path)["sources"]
    assert sources == {"packed": "llava.json"}
    assert _source({"mix": {}, "shards": "packed"}, sources) == "packed, packed from llava.json"
    mix = {"a": {"shards": "packed", "weight": 2}, "b": {"shards": "other", "weight": 1}}
    assert _source({"mix": mix}, sources) == "packed, packed from llava.json (weight 2), other (weight 1)"


@pytest.mark.parametrize("left", ["", '{"started": "2026-', "[1]"], ids=["empty", "cut", "not an object"])
def test_an_incomplete_file_does_not_stop_the_run(tmp_path, left, caplog):
    """As a full disk or a power cut leaves it."""
    (tmp_path / "run.json").write_text(left)
    assert len(record(tmp_path)["launches"]) == 1
    assert "run.json is incomplete" in caplog.text and not list(tmp_path.glob("*.tmp"))
