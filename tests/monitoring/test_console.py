"""What a run prints: fields, widths, and the live line."""

from __future__ import annotations

import pytest

from megaunigame.monitoring import console
from megaunigame.monitoring.console import Console, fitted, line_parts, live_parts, phase, shortened, wrapped
from megaunigame.monitoring.units import clock_time, count, duration, memory, significant

METRICS = {
    "loss/understanding": 1.25,
    "loss/pixel": 3.5,
    "loss/total": 2.5,
    "optim/lr": 2e-5,
    "optim/grad_norm": 0.75,
    "perf/rows_per_second": 48.0,
    "perf/step_seconds": 0.5,
    "perf/mfu": 0.3125,
    "perf/peak_memory_bytes": 3.25 * 2**30,
    "data/wait_seconds": 0.1,
}
LINE = (
    "step   7/200 | ETA  1:02:05 |    48.0 rows/s |   0.500 s/step | total   2.5000 | understanding   1.2500"
    " | pixel   3.5000 | grad    0.750 | lr 2.00e-05 |  MFU 31.2 % |     3.2 GiB"
)


def test_a_line_has_speed_time_left_losses_gradient_mfu_and_memory():
    assert " | ".join(line_parts(7, 200, METRICS, remaining=3725.0)) == LINE
    first = line_parts(1, 200, {"loss/total": 2.5}, remaining=None)
    assert first == ["step   1/200", "ETA --:--:--", "total   2.5000"]


def test_on_80_columns_a_line_breaks_between_its_fields():
    lines = wrapped(line_parts(7, 200, METRICS, remaining=3725.0), 80).split("\n")
    assert len(lines) == 3, lines
    assert all(len(line) <= 80 for line in lines)
    assert " | ".join(line.removeprefix("    ") for line in lines) == LINE
    assert wrapped(["step 1/2", "x" * 90, "y"], 80).split("\n") == ["step 1/2", "    " + "x" * 90, "    y"]


def test_the_live_line_drops_what_does_not_fit():
    parts = live_parts(METRICS, remaining=65.0)
    assert parts == [
        *("ETA 0:01:05", "48.0 rows/s", "total 2.500", "grad 0.75", "MFU 31.2 %", "3.2 GiB"),
        *("understanding 1.250", "pixel 3.500"),
    ]
    assert fitted(parts, 40) == " ETA 0:01:05 | 48.0 rows/s | total 2.500"
    assert fitted(parts, 39) == " ETA 0:01:05 | 48.0 rows/s"
    assert fitted(parts, 3) == ""


def test_a_long_name_keeps_its_beginning_and_its_end():
    assert shortened("tiny_sft", 20) == "tiny_sft"
    short = shortened("janus_pro_7b_unigame_budget_0.1-seed-2", 20)
    assert short == "janus_pro…0.1-seed-2" and len(short) == 20


@pytest.mark.parametrize("columns", [80, 120])
def test_the_live_line_is_one_line_of_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    live = Console("a_run_with_a_very_long_name_" * 4, total_steps=20_000, start_step=1, live=True)
    for step in (19_998, 19_999, 20_000):
        live.step(step, METRICS, printed=False)
    live.close()
    drawn = [line for line in capsys.readouterr().err.replace("\n", "\r").split("\r") if line.strip()]
    assert drawn and all(len(line) < columns for line in drawn), drawn
    assert "20000/20000" in drawn[-1] and "ETA 0:00:00" in drawn[-1]
    assert "total 2.500 | grad 0.75" in drawn[-1]
    assert ("GiB" in drawn[-1]) == (columns == 120)


def test_a_phase_says_what_begins_and_how_long_it_took(capsys, monkeypatch):
    now = iter([10.0, 214.0, 0.0, 1.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    with phase("loading models/x", "loaded", shown=True):
        assert capsys.readouterr().out == "loading models/x ...\n"
    assert capsys.readouterr().out == "loaded in 3 min 24 s\n"
    with phase("loading models/x", "loaded", shown=False):
        pass
    assert capsys.readouterr().out == ""


def test_a_phase_that_fails_has_not_succeeded(capsys):
    with pytest.raises(ValueError, match="no"), phase("dry run", "dry run passed", shown=True):
        raise ValueError("no")
    assert capsys.readouterr().out == "dry run ...\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (90_000, "1d 1:00:00")])
def test_clock_time(seconds, text):
    assert clock_time(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (10.2, "10 s"), (59.7, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (97_300, "1 d 3 h")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_counts_and_bytes():
    assert [count(n) for n in (950, 12_345, 1_234_567, 2.5e9, 3e12)] == ["950", "12,345", "1.2 M", "2.5 B", "3.0 T"]
    assert [memory(n) for n in (3.25 * 2**30, 12 * 2**20, 2**29)] == ["3.2 GiB", "12.0 MiB", "0.5 GiB"]
    assert [significant(x) for x in (12_345.6, 0.012345, -250.4)] == ["12,346", "0.0123", "-250"]
