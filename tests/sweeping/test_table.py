"""The numbers of the table against numbers worked out by hand, and what a partial sweep shows."""

from __future__ import annotations

import csv
import io
import json

import pytest
from PIL import Image

from megaunigame.sweeping.definition import Axis, Sweep
from megaunigame.sweeping.plot import write_plot
from megaunigame.sweeping.runs import Run, run_values
from megaunigame.sweeping.table import Result, as_csv, as_markdown, difference, missing, spread, values_of, write_table

ACCURACY, LOSS = "evaluation/q/accuracy/mean", "loss/total"


def sweep(**settings) -> Sweep:
    default = dict(
        name="fruit", output="out", recipe="r.yaml", arms={"plain": {}, "fast": {}, "slow": {}}, baseline="plain",
        metrics={"right": ACCURACY, "loss": LOSS},
    )  # fmt: skip
    return Sweep(**{**default, **settings})


def results(**values: list[float | None]) -> list[Result]:
    """Arm -> accuracy of seeds 0, 1, ..; the loss is ten times the accuracy."""
    return [
        Result(arm, seed, {ACCURACY: value, LOSS: 10 * value})
        for arm, row in values.items()
        for seed, value in enumerate(row)
        if value is not None
    ]


FULL = results(plain=[0.50, 0.60, 0.70], fast=[0.60, 0.62, 0.79], slow=[0.5, 0.6, 0.7])


def test_spread_by_hand():
    """0.60, 0.62, 0.79: mean 0.67; squares .0049 + .0025 + .0144 = .0218; / 2 = .0109; root .104403."""
    found = spread(list(values_of(FULL, "fast", ACCURACY).values()))
    assert (found.mean, found.deviation, found.count) == (pytest.approx(0.67), pytest.approx(0.104403, abs=1e-6), 3)
    assert spread([]) is None
    assert spread([0.5]).deviation is None


def test_difference_by_hand():
    """.10, .02, .09: mean .07; squares .0009 + .0025 + .0004 = .0038; / 2 = .0019; root .0435890; / root 3 = .0251661."""
    found = difference(FULL, "fast", "plain", ACCURACY)
    assert (found.mean, found.deviation, found.count) == (pytest.approx(0.07), pytest.approx(0.0251661, abs=1e-7), 3)


def test_difference_over_common_seeds_only():
    partial = results(plain=[0.5, None, 0.7], fast=[0.6, 0.9])
    found = difference(partial, "fast", "plain", ACCURACY)
    assert (found.mean, found.deviation, found.count) == (pytest.approx(0.1), None, 1)
    assert difference(partial, "slow", "plain", ACCURACY) is None


def test_markdown():
    lines = as_markdown(sweep(), FULL).splitlines()
    assert lines[0] == "# fruit" and lines[2].startswith("All 9 runs finished: `r.yaml`, seeds 0, 1, 2")
    assert lines[4] == "| arm | seeds | right (%) | vs plain | loss | vs plain |"
    assert lines[6] == "| plain | 3 | 60.0 ± 10.0 |  | 6 ± 1.0 |  |"
    assert lines[7] == "| fast | 3 | 67.0 ± 10.4 | +7.0 ± 2.5 | 6.7 ± 1.0 | +0.7 ± 0.25 |"
    assert lines[8] == "| slow | 3 | 60.0 ± 10.0 | +0.0 ± 0.0 | 6 ± 1.0 | +0 ± 0.0 |"


def test_partial_sweep():
    lines = as_markdown(sweep(), results(plain=[0.5], fast=[0.6, 0.7])).splitlines()
    assert lines[2].startswith("PARTIAL: 3 of 9 runs finished")
    assert lines[6] == "| plain | 1 | 50.0 |  | 5 |  |"
    assert lines[7].startswith("| fast | 2 | 65.0 ± 7.1 | +10.0 (n=1) |")
    assert lines[8] == "| slow | 0 | - | - | - | - |"


def test_without_a_baseline_nothing_is_compared():
    lines = as_markdown(sweep(baseline=""), FULL).splitlines()
    assert lines[4] == "| arm | seeds | right (%) | loss |" and lines[7] == "| fast | 3 | 67.0 ± 10.4 | 6.7 ± 1.0 |"
    assert "vs" not in lines[-1]


def test_missing_metric():
    """Only where it is missing; the number of runs in a cell says that it stands on fewer."""
    without = [Result("plain", 0, {ACCURACY: 0.5}), *(r for r in FULL if (r.arm, r.seed) != ("plain", 0))]
    assert missing(sweep(), without) == ["loss/total (loss) is missing in plain/seed-0"]
    assert missing(sweep(), FULL) == []
    assert as_markdown(sweep(), without).splitlines()[6] == "| plain | 3 | 60.0 ± 10.0 |  | 6.5 ± 0.71 (n=2) |  |"
    nowhere = sweep(metrics={"other": "loss/other"})
    assert as_markdown(nowhere, FULL).splitlines()[6] == "| plain | 3 | - |"


def test_a_wide_table_has_the_arms_as_columns():
    wide = sweep(metrics={"right": ACCURACY, **{f"loss {n}": LOSS for n in range(10)}})
    lines = as_markdown(wide, FULL).splitlines()
    assert lines[4:8] == [
        "| arm | plain | fast | slow |",
        "| --- | ---: | ---: | ---: |",
        "| seeds | 3 | 3 | 3 |",
        "| right (%) | 60.0 ± 10.0 | 67.0 ± 10.4 | 60.0 ± 10.0 |",
    ]
    assert lines[8] == "| vs plain |  | +7.0 ± 2.5 | +0.0 ± 0.0 |"


def test_csv_has_every_metric_as_recorded():
    rows = list(csv.DictReader(io.StringIO(as_csv([*FULL, Result("odd", 7, {"perf/passes": 2.0})]))))
    assert rows[3] == {"arm": "fast", "seed": "0", ACCURACY: "0.6", LOSS: "6.0", "perf/passes": ""}
    assert rows[-1] == {"arm": "odd", "seed": "7", ACCURACY: "", LOSS: "", "perf/passes": "2.0"}


AXIS = Axis("speed", {"fast": 100.0, "slow": 1.0}, log=True)


@pytest.mark.parametrize("x", [Axis(), AXIS], ids=["arms", "axis"])
@pytest.mark.parametrize("found", [FULL, results(fast=[0.6]), []], ids=["full", "partial", "none"])
def test_files(tmp_path, x, found):
    s = sweep(output=str(tmp_path / "out"), x=x)
    assert write_table(s, found).read_text() == as_markdown(s, found)
    with Image.open(write_plot(s, found)) as picture:
        assert picture.width > picture.height
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["plot.png", "results.csv", "table.md"]


def test_a_step_metric_is_the_mean_of_the_second_half_and_an_evaluation_its_last_value(tmp_path):
    lines = [{"step": step, "time": 0.0, "loss/total": float(step)} for step in range(1, 9)]
    lines += [{"step": step, "time": 0.0, ACCURACY: step / 10} for step in (0, 8)]
    run = Run("a", 0, tmp_path, 8, "r.yaml", (), {})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run_values(run) == {"loss/total": 6.5, ACCURACY: 0.8}
