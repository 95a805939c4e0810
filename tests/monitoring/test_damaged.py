"""Damaged files of a run folder, and disks that cannot be written: said, never a traceback of the report."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from megaunigame.monitoring.history import read_run_folder
from megaunigame.monitoring.monitor import Monitor
from megaunigame.monitoring.report import write_report


def monitor(folder, **options):
    given = {"every": 1, "total_steps": 3, "start_step": 1, "rank": 0, "trackers": [], "progress": False}
    return Monitor(folder, **{**given, **options})


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    logs = monitor(folder)
    for step in (1, 2, 3):
        logs.log(step, {"loss/a": 1.0 / step})
    logs.close()
    (folder / "run.json").write_text('{"name": "n"}')
    for part in ("evaluation", "panels"):
        (folder / part).mkdir()
    return folder


@pytest.mark.fault(
    "a damaged run.json, metrics line, evaluation or panel file",
    does="the report leaves it out and names it",
    lost="what the file held",
)
@pytest.mark.parametrize("name", ["run.json", "evaluation/step-00000003.json", "panels/step-00000003.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"{}"])
def test_a_damaged_file_is_left_out_of_the_report(run, caplog, name, content):
    (run / name).write_bytes(content)
    assert write_report(run).exists()
    said = [record.getMessage() for record in caplog.records]
    assert content == b"{}" or (len(said) == 1 and str(run / name) in said[0] and "It is left out." in said[0])
    assert read_run_folder(run).series["loss/a"][0] == [1, 2, 3]


def test_garbage_in_the_metrics(run, caplog):
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'\0\0\0\n{"loss/a": 3.0}\n{"step": 4, "loss/a": "x"}\n{"step": 5, "loss/a": 0.5}\n{"step": 6')
    assert read_run_folder(run).series["loss/a"] == ([1, 2, 3, 5], [1.0, 0.5, 1 / 3, 0.5])
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "1 damaged lines are left out, the first is line 4" in said and "a line without a step is left out" in said
    monitor(run, start_step=3).close()
    assert read_run_folder(run).series["loss/a"][0] == [1, 2]
    assert (run / "metrics.jsonl").read_bytes().count(b"\n") == 2


def test_the_report_shows_what_was_replaced(run):
    assert "Replaced samples" not in write_report(run).read_text()
    line = '{"step": 1, "stream": "s", "shard": "%s", "key": "%s", "position": 4, "reason": "not <b>JSON"}\n'
    (run / "quarantine.jsonl").write_text(line % ("a.tar", "x") + line % ("a.tar", "y") + line % ("b.tar", ""))
    page = write_report(run).read_text()
    assert "Replaced samples" in page and "not &lt;b&gt;JSON" in page and "the shard was lost" in page
    assert page.index("a.tar") < page.index("b.tar")


class Full:
    """A file on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        pass


@pytest.mark.fault(
    "the disk is full when metrics are logged", does="ends all ranks at the next fetch", lost="steps since the save"
)
def test_a_full_disk_is_noted_with_the_name_of_the_file(tmp_path):
    logs = monitor(tmp_path / "run")
    logs.log(1, {"loss/a": 1.0})
    assert logs.failed is None
    logs.file = Full()
    logs.log(2, {"loss/a": 1.0})
    assert logs.failed is not None and logs.failed.errno == errno.ENOSPC
    assert logs.failed.filename == str(tmp_path / "run" / "metrics.jsonl")


@pytest.mark.fault("the run folder is deleted under a run", does="says so, begins its logs again", lost="earlier history")
def test_a_deleted_run_folder_is_made_again(tmp_path, caplog):
    logs = monitor(tmp_path / "run")
    logs.log(1, {"loss/a": 1.0})
    shutil.rmtree(tmp_path / "run")
    logs.log(2, {"loss/a": 0.5})
    logs.log(3, {"loss/a": 0.25})
    assert read_run_folder(tmp_path / "run").series["loss/a"] == ([2, 3], [0.5, 0.25])
    assert len(caplog.records) == 1 and "metrics.jsonl was deleted while the run writes it" in caplog.text
    assert logs.failed is None


@pytest.mark.fault("the clock jumps", does="nothing: times are labels, durations come from a monotonic clock", lost="nothing")
def test_a_jump_of_the_clock_changes_nothing_but_labels(tmp_path, monkeypatch):
    logs = monitor(tmp_path)
    for step, now in ((1, 2e9), (2, 0.0), (3, 1e9)):
        monkeypatch.setattr("megaunigame.monitoring.monitor.time.time", lambda now=now: now)
        logs.log(step, {"loss/a": 1.0})
    assert read_run_folder(tmp_path).series["loss/a"][0] == [1, 2, 3]
