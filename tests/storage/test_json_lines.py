from __future__ import annotations

import pytest

from megaunigame.storage.json_lines import as_lines, read_lines


def test_what_is_written_is_read(tmp_path):
    path, objects = tmp_path / "x.jsonl", [{"a": 1}, {"b": "line\nbreak  "}]
    path.write_text(as_lines(objects))
    assert read_lines(path) == objects
    assert read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.fault("damaged lines in metrics.jsonl or quarantine.jsonl", does="leaves them out and says so", lost="those lines")
@pytest.mark.parametrize("damaged", ["garbage", "[1, 2]", "", "\0\0\0", "\udcff", "[" * 100_000])
def test_damaged_lines_are_left_out_and_said(tmp_path, caplog, damaged):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + damaged.encode("utf-8", "surrogateescape") + b'\n{"b": 2}\n{"c": ')
    assert read_lines(path) == [{"a": 1}, {"b": 2}]
    assert [record.getMessage() for record in caplog.records] == [f"{path}: 1 damaged lines are left out, the first is line 2."]
