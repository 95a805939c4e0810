"""`megaunigame compare`: what differs between runs, and what each reached."""

from __future__ import annotations

import json

import pytest

from megaunigame.command_line import parsed
from megaunigame.commands.compare import run
from megaunigame.errors import DataError
from megaunigame.monitoring.compared_runs import as_text, compare
from megaunigame.monitoring.history import read_run_folder


def write(folder, recipe, lines):
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_run_folder(folder)


@pytest.fixture
def runs(tmp_path):
    first = write(
        tmp_path / "a",
        "name: a\noutput: runs/a\noptimizer: {lr: 0.1}\nseed: 3\n",
        [{"step": 1, "loss/total": 5.0, "perf/mfu": 0.3}, {"step": 2, "loss/total": 4.25, "questions/accuracy": 0.5}],
    )
    second = write(
        tmp_path / "b",
        "name: b\noutput: runs/b\noptimizer: {lr: 0.2, clip: 1.0}\nseed: 3\n",
        [{"step": 1, "loss/total": 5.5}, {"step": 2, "loss/total": None}, {"step": 3, "loss/pixel": 7.0}],
    )
    return [first, second]


def test_settings_that_differ_and_last_values(runs):
    found = compare(runs)
    assert found.settings == {"optimizer.clip": ["-", "1.0"], "optimizer.lr": ["0.1", "0.2"]}
    assert found.reached == {"loss/pixel": [None, 7.0], "loss/total": [4.25, 5.5], "questions/accuracy": [0.5, None]}
    lines = as_text(found).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1, "columns of the first table are aligned"
    assert any(
        line.split("|")[1:4]
        == [" loss/pixel         ", " -" + " " * (len(found.names[0]) - 1) + " ", " 7" + " " * (len(found.names[1]) - 1) + " "]
        for line in lines
    )


def test_metrics_that_are_asked_for(runs):
    assert list(compare(runs, ["perf/*", "*/accuracy"]).reached) == ["perf/mfu", "questions/accuracy"]
    with pytest.raises(DataError, match="No metric matches acuracy. Known: loss/pixel, loss/total"):
        compare(runs, ["acuracy"])


def test_a_run_without_a_step_is_named(runs, tmp_path):
    empty = write(tmp_path / "c", "name: c\n", [])
    with pytest.raises(DataError, match=r"c has no metrics yet"):
        compare([*runs, empty])


def test_the_same_settings(runs):
    assert as_text(compare([runs[0], runs[0]])).startswith("The settings of the runs are the same.")


def test_the_command_writes_its_numbers(runs, tmp_path, capsys):
    run(parsed("compare", [str(tmp_path / "a"), str(tmp_path / "b"), "--json", str(tmp_path / "new" / "out.json")]))
    assert "loss/total" in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "out.json").read_text())["reached"]["loss/total"] == [4.25, 5.5]
