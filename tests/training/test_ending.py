"""The end of a run: a report that cannot be written, and connections that cannot be closed, are said and change nothing."""

from __future__ import annotations

import errno
import logging
import threading
from types import SimpleNamespace

import pytest
import torch

from megaunigame.errors import DataError
from megaunigame.parallel.pulse import PULSE
from megaunigame.training import ending
from tests.worlds import OneRank

CPU = torch.device("cpu")


def finishing(folder, result):
    """A record whose report gives, or raises, `result`."""
    phases = []

    def finish(*, complete):
        phases.append((PULSE.look().phase, PULSE.look().in_step, complete))
        if isinstance(result, Exception):
            raise result
        return result

    return SimpleNamespace(folder=folder, finish=finish, phases=phases)


def test_a_report_is_named_and_watched(tmp_path, capsys):
    record = finishing(tmp_path, tmp_path / "report.html")
    ending.report(OneRank(), record, complete=False)
    assert capsys.readouterr().out == f"report: {tmp_path}/report.html\n"
    assert record.phases == [("report", True, False)]


@pytest.mark.fault("report.html cannot be written", does="a warning names why; the exit code stays", lost="the report")
@pytest.mark.parametrize(
    "error, why, has_traceback",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: ", False),
        (DataError("metrics.jsonl is garbage."), "DataError: metrics.jsonl is garbage.", False),
        (KeyError("a plot"), "KeyError: 'a plot'", True),
    ],
)
def test_a_report_that_cannot_be_written_is_a_warning(tmp_path, caplog, error, why, has_traceback):
    ending.report(OneRank(), finishing(tmp_path, error), complete=True)
    (line,) = caplog.records
    assert line.levelno == logging.WARNING and bool(line.exc_info) == has_traceback
    assert f"The report of {tmp_path} could not be written ({why}" in line.getMessage()
    assert "the same command writes it again" in line.getMessage()


def test_the_others_wait_for_the_report():
    calls = []
    world = SimpleNamespace(barrier=lambda: calls.append("barrier"))
    ending.report(world, None, complete=True)
    assert calls == ["barrier"]


@pytest.mark.fault(
    "a rank dies, or a device hangs, after the report", does="a warning; the exit code of the run stays", lost="nothing"
)
def test_connections_that_cannot_be_closed_are_a_warning(caplog, monkeypatch):
    def broken():
        raise RuntimeError("Connection reset by peer")

    ending.leave(SimpleNamespace(device=CPU, close=broken))
    monkeypatch.setattr(ending, "CLOSE_SECONDS", 0.1)
    ends = threading.Event()
    ending.leave(SimpleNamespace(device=CPU, close=ends.wait))
    ends.set()
    said = [record.getMessage() for record in caplog.records]
    assert "(RuntimeError: Connection reset by peer)" in said[0] and "(no answer within 0.1 s)" in said[1]
    ending.leave(SimpleNamespace(device=CPU, close=lambda: None))
    assert len(caplog.records) == 2
