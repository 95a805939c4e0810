from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megaunigame.monitoring.monitor import Monitor, clock_time, log_line, rank_log
from megaunigame.pixels import Panel

METRICS = {
    "loss/understanding": 1.25,
    "loss/total": 2.5,
    "optim/lr": 2e-5,
    "optim/grad_norm": 0.75,
    "perf/rows_per_second": 48.0,
    "perf/step_seconds": 0.5,
}


def monitor(folder: Path, start: int = 1, **settings) -> Monitor:
    defaults = {"every": 5, "total_steps": 20, "rank": 0, "tensorboard": False, "progress": True}
    return Monitor(folder, start_step=start, **{**defaults, **settings})


def run(watched: Monitor, steps: range) -> None:
    for step in steps:
        watched.log(step, {**METRICS, "loss/total": float(step)})
    watched.close()


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_step_is_one_json_line(tmp_path):
    run(monitor(tmp_path), range(1, 8))
    written = lines(tmp_path)
    assert [line["step"] for line in written] == list(range(1, 8))
    assert written[0]["optim/lr"] == 2e-5 and written[6]["time"] >= written[0]["time"] > 1e9


def test_values_that_are_not_finite_are_null(tmp_path):
    watched = monitor(tmp_path)
    watched.log(1, {"loss/total": math.nan, "optim/grad_norm": math.inf})
    watched.close()
    assert lines(tmp_path)[0]["loss/total"] is None and lines(tmp_path)[0]["optim/grad_norm"] is None


def test_a_resumed_run_has_one_gapless_history(tmp_path):
    killed = monitor(tmp_path)
    run(killed, range(1, 13))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "ti')  # killed in the middle of a line
    resumed = monitor(tmp_path, start=11)  # from the checkpoint of step 10
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 11))
    run(resumed, range(11, 21))
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 21))


def test_a_fresh_run_starts_an_empty_history(tmp_path):
    earlier = monitor(tmp_path)
    earlier.record(0, {"evaluation/val/accuracy": 0.2})
    run(earlier, range(1, 4))
    run(monitor(tmp_path), range(1, 3))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_lines_are_printed_at_the_first_step_every_few_and_at_the_last(tmp_path, capsys):
    run(monitor(tmp_path, total_steps=12), range(1, 13))
    out = capsys.readouterr()
    printed = out.out.splitlines()
    assert [line.split("|")[0].strip() for line in printed] == ["step  1/12", "step  5/12", "step 10/12", "step 12/12"]
    assert len({len(line) for line in printed}) == 1
    # Not a terminal: no progress bar, no carriage returns.
    assert "\r" not in out.out and out.err == ""


def test_an_evaluation_is_recorded_without_a_line(tmp_path, capsys):
    watched = monitor(tmp_path)
    watched.record(5, {"evaluation/val/accuracy": 0.5})
    watched.close()
    assert lines(tmp_path)[0]["evaluation/val/accuracy"] == 0.5
    assert capsys.readouterr().out == ""


def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(monitor(tmp_path, start=11), range(11, 21))
    bar = capsys.readouterr().err
    assert "20/20" in bar and "step" in bar and "\r" in bar


def test_progress_can_be_switched_off(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(monitor(tmp_path, progress=False), range(1, 3))
    assert capsys.readouterr().err == ""


def test_other_ranks_do_nothing(tmp_path, capsys):
    watched = monitor(tmp_path / "run", rank=1, tensorboard=True)
    watched.say("hello")
    watched.record(1, METRICS)
    watched.panels(2, [Panel("Shown", {}, {})])
    run(watched, range(1, 6))
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_tensorboard_forgets_what_a_killed_run_logged_too_much(tmp_path):
    run(monitor(tmp_path, tensorboard=True), range(1, 13))
    run(monitor(tmp_path, start=11, tensorboard=True), range(11, 21))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/total")] == list(range(1, 21))


def test_log_line():
    line = log_line(7, 200, METRICS, remaining=3725.0)
    assert line == (
        "step   7/200 | understanding   1.2500 | total   2.5000 | lr 2.00e-05 | grad    0.750 |    48.0 rows/s"
        " |   0.500 s/step | ETA   1:02:05"
    )


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (90_000, "1d 1:00:00")])
def test_clock_time(seconds, text):
    assert clock_time(seconds) == text


def test_each_rank_keeps_its_warnings(tmp_path):
    handler = rank_log(tmp_path, 3)
    try:
        logging.getLogger("data").info("unimportant")
        assert not (tmp_path / "rank_3.log").exists()
        logging.getLogger("data").warning("sample k9 was replaced")
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("trainer").exception("step 4 failed")
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    text = (tmp_path / "rank_3.log").read_text()
    assert "WARNING data: sample k9 was replaced" in text and "ValueError: broken" in text
    assert "unimportant" not in text
