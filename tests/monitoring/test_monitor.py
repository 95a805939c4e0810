from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megaunigame.monitoring import history
from megaunigame.monitoring.monitor import Monitor, rank_log
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
    defaults = {"every": 5, "total_steps": 20, "rank": 0, "trackers": [], "progress": True}
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


def test_evaluations_of_steps_that_are_made_again_are_set_aside(tmp_path, capsys):
    home = tmp_path / "evaluation"
    for launch in ("first", "second"):
        for step in (0, 10, 15):
            (home / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
            (home / f"step-{step:08d}" / "a.png").write_text(launch)
            (home / f"step-{step:08d}.json").write_text(launch)
        monitor(tmp_path, start=11).close()
        assert f"evaluations of steps that are made again (15) are now in {home / 'set-aside'}" in capsys.readouterr().out
        assert sorted(file.name for file in home.glob("step-*.json")) == ["step-00000000.json", "step-00000010.json"]
        for name in ("step-00000015.json", "step-00000015/a.png"):
            assert (home / "set-aside" / name).read_text() == launch
    monitor(tmp_path, start=11).close()
    assert "made again" not in capsys.readouterr().out


def test_trackers_do_not_make_a_run_read_all_its_evaluations(tmp_path, monkeypatch):
    read = []

    def read_evaluation(file: Path) -> dict:
        read.append(file.stem)
        return {"step": int(file.stem.removeprefix("step-")), "suites": {}}

    monkeypatch.setattr(history, "read_evaluation", read_evaluation)
    (tmp_path / "evaluation").mkdir()
    for step in (0, 10, 15, 20):
        (tmp_path / "evaluation" / f"step-{step:08d}.json").touch()
    assert [one.step for one in history.read_first_and(tmp_path, 15)] == [0, 15] and len(read) == 2
    assert [one.step for one in history.read_first_and(tmp_path, 0)] == [0] and len(read) == 3


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
    assert "20/20" in bar and "ETA 0:00:00 | 48.0 rows/s | total 20.000 | grad 0.75" in bar and "\r" in bar


def test_progress_can_be_switched_off(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(monitor(tmp_path, progress=False), range(1, 3))
    assert capsys.readouterr().err == ""


def test_other_ranks_do_nothing(tmp_path, capsys):
    watched = monitor(tmp_path / "run", rank=1, trackers=["tensorboard"])
    watched.say("hello")
    watched.record(1, METRICS)
    watched.panels(2, [Panel("Shown", {}, {})])
    run(watched, range(1, 6))
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_tensorboard_forgets_what_a_killed_run_logged_too_much(tmp_path):
    run(monitor(tmp_path, trackers=["tensorboard"]), range(1, 13))
    run(monitor(tmp_path, start=11, trackers=["tensorboard"]), range(11, 21))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/total")] == list(range(1, 21))


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
