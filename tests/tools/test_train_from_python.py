"""`megaunigame.train`: the run of a command, with its result and its errors in Python."""

from __future__ import annotations

import sys

import pytest

import megaunigame
from megaunigame import errors
from megaunigame.tools import train_from_python as api
from tests.multi_process.launcher import run_script
from tests.multi_process.tiny_run import write_data, write_model, write_recipe


def test_the_package_is_free_to_import():
    said = run_script("-c", "import sys, megaunigame; print(sorted(n for n in sys.modules if n.startswith(('torch', 'mega'))))")
    assert said.stdout.strip() == "['megaunigame']"
    assert "train" in dir(megaunigame) and not hasattr(megaunigame, "trian")


def test_a_run_and_its_errors(tmp_path, capsys):
    write_model(tmp_path / "model")
    write_data(tmp_path / "shards")
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path)
    folder = megaunigame.train(recipe, ranks=1, schedule={"steps": 2}, output=tmp_path / "run", **{"checkpoint.every": 1})
    assert folder == tmp_path / "run" and (folder / "checkpoints" / "step-00000002").is_dir()
    assert "report: " in capsys.readouterr().out
    with pytest.raises(errors.ConfigError, match="Did you mean 'steps'"):
        megaunigame.train(recipe, schedule={"stesp": 2})
    with pytest.raises(errors.DataError, match="No shards"):
        megaunigame.train(recipe, data={"train": {"shards": str(tmp_path / "nowhere")}}, output=tmp_path / "other")


@pytest.mark.parametrize(
    "program, kind, said",
    [
        ("print('ConfigError: a b'); sys.exit(2)", errors.ConfigError, "^a b$"),
        ("print('rank 3: LostShard: gone'); sys.exit(1)", errors.LostShard, "^gone$"),
        ("print('noise: x\\nrank 1: ModelError: two\\n  lines'); sys.exit(2)", errors.ModelError, "^two\nlines$"),
        ("print('saved after step 3'); sys.exit(75)", errors.Interrupted, "saved after step 3"),
        ("raise ValueError('odd')", api.RunFailed, "exit code 1: ValueError: odd"),
        ("print('SystemError: x'); sys.exit(4)", api.RunFailed, "exit code 4"),
    ],
)
def test_the_last_line_says_what_is_raised(monkeypatch, program, kind, said):
    run = api._run
    monkeypatch.setattr(api, "_run", lambda command: run([sys.executable, "-c", f"import sys\n{program}"]))
    with pytest.raises(kind, match=said) as raised:
        megaunigame.train("tiny_sft")
    assert type(raised.value) is kind


def test_settings_are_typed_as_they_are(monkeypatch):
    typed = []
    monkeypatch.setattr(api, "_run", lambda command: typed.extend(command) or ([""], 0))
    megaunigame.train("tiny_sft", output="runs/\U0001f600", schedule={"steps": 30}, evaluation={"suites": {}}, ranks=2)
    assert typed[-5:] == ['output="runs/\U0001f600"', "schedule.steps=30", "evaluation.suites={}", "--ranks", "2"]
    with pytest.raises(errors.ConfigError, match="schedule.steps: .* is not a value of a recipe"):
        megaunigame.train("tiny_sft", schedule={"steps": object()})
