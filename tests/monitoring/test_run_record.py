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


@pytest.mark.fault("run.json is empty or garbage", does="the run goes on, with a warning", lost="times of earlier launches")
@pytest.mark.parametrize("left", [b"", b'{"started": "2026-', b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_an_incomplete_file_does_not_stop_the_run(tmp_path, left, caplog):
    """As a full disk or a power cut leaves it."""
    (tmp_path / "run.json").write_bytes(left)
    assert len(record(tmp_path)["launches"]) == 1
    assert "run.json is not the record of a run" in caplog.text and not list(tmp_path.glob("*.tmp"))


def test_entries_of_another_kind_are_left_out_and_the_others_kept(tmp_path, caplog):
    odd = {"started": "2020", "launches": 7, "sources": ["x"], "seconds": "1", "more": {}}
    (tmp_path / "run.json").write_text(json.dumps(odd))
    written = record(tmp_path, packed="llava.json")
    assert written["started"] == "2020" and len(written["launches"]) == 1 and written["seconds"] == 0
    assert written["sources"] == {"packed": "llava.json"} and "more" not in written
    assert "sources, launches, seconds of earlier launches are garbage" in caplog.text
