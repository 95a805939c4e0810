"""`megaunigame sweep` with real training: two arms, one seed, two steps."""

from __future__ import annotations

import pytest

from megaunigame.command_line import parsed
from megaunigame.commands.sweep import run
from megaunigame.errors import ConfigError
from tests.multi_process.launcher import REPOSITORY
from tests.multi_process.tiny_run import write_data, write_model
from tests.sweeping.sweep_files import write_sweep

pytestmark = pytest.mark.ranks


def sweep(words):
    run(parsed("sweep", [str(word) for word in words]))


@pytest.mark.timeout(180)
def test_a_sweep_trains_compares_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    write_model(tmp_path / "model")
    write_data(tmp_path / "shards")
    arms = {"plain": {}, "fast": {"optimizer.lr": 5.0e-2}, "broken": {"objectives.understanding.rowss": 2}}
    metrics = {"loss": "loss/total", "other": "loss/other"}
    command = [write_sweep(tmp_path, arms=arms, metrics=metrics), "seeds=[0]", "jobs=2", "--set", "schedule.steps=2"]

    with pytest.raises(SystemExit, match="Failed: broken/seed-0 .*\n?.*The same command continues"):
        sweep(command)
    text = capsys.readouterr().out
    assert "[2/3] fast/seed-0    done" in text and "exit code 2" in text and "Did you mean 'rows'" in text
    assert text.count("loss/other (other) is missing in plain/seed-0, fast/seed-0") == 1
    table = (tmp_path / "out/table.md").read_text()
    assert "PARTIAL: 2 of 3 runs" in table and "| broken | 0 | - | - | - |" in table
    assert (tmp_path / "out/plot.png").exists() and (tmp_path / "out/plain/seed-0/report.html").exists()

    sweep([*command, "--dry-run"])
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["done", "done", "unfinished"]

    (tmp_path / "out/table.md").unlink()
    sweep([*command, "--table"])
    assert (tmp_path / "out/table.md").read_text() == table and "start" not in capsys.readouterr().out

    with pytest.raises(ConfigError, match="schedule.steps=3"):
        sweep([*command[:-1], "schedule.steps=3"])
