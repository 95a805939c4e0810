"""The command `megaunigame`: what it lists, what it refuses, and that help comes at once."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

import pytest

from megaunigame.command_line import command_names, parsed, typed_name, usage
from megaunigame.commands import config
from megaunigame.errors import ConfigError
from megaunigame.parallel import local_ranks
from tests.multi_process.launcher import REPOSITORY, run_script

HELP = """
import contextlib, io, json, sys
from megaunigame.command_line import command_names, parsed
found = {}
for name in command_names():
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        parsed(name, ["--help"])
    found[name] = said.getvalue()
print(json.dumps([found, sorted({"torch", "numpy", "transformers", "matplotlib", "deepspeed"} & set(sys.modules))]))
"""


def test_help_of_all_commands_imports_nothing_slow():
    done = run_script("-c", HELP)
    assert done.returncode == 0, done.stderr
    found, slow = json.loads(done.stdout)
    assert not slow
    for name, said in found.items():
        assert f"usage: megaunigame {typed_name(name)}" in said and f"    megaunigame {typed_name(name)}" in said, name


def test_usage_has_every_command_with_its_purpose():
    lines = usage().splitlines()
    for name in command_names():
        (line,) = [line for line in lines if line.startswith(f"  {typed_name(name)} ")]
        assert len(line.split()) > 3
    assert {"train", "evaluate", "export", "plan", "profile", "sweep", "compare", "prepare", "recipes"} <= set(command_names())


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["--version"], 0, "0."),
        (["trian"], 2, "Unknown command 'trian'. Did you mean 'train'?"),
        ([], 2, "usage: megaunigame COMMAND"),
        (["--local_rank=0", "recipes", "show", "tiny_aia"], 0, "name: tiny_aia"),
        (["recipes"], 0, "On GPUs, and your own:\n  bagel_7b_512_unigame"),
    ],
)
def test_first_words(words, code, said):
    done = run_script("-m", "megaunigame", *words)
    assert done.returncode == code and said in done.stdout + done.stderr


def test_scripts_of_a_clone_run_the_command_of_their_name():
    scripts = [(file.stem, ast.parse(file.read_text())) for file in (REPOSITORY / "launch").glob("*.py")]
    for name, tree in scripts:
        calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        if run := [call for call in calls if call.startswith("run_command(")]:
            assert run == [f"run_command({name!r}, sys.argv[1:])"] and name in command_names()
    assert {"train", "evaluate", "export"} <= {name for name, _ in scripts}


def test_settings_may_follow_options():
    options = parsed("train", ["a.yaml", "--ranks", "2", "schedule.steps=3", "--local_rank=1"])
    assert (options.recipe, options.overrides, options.ranks) == ("a.yaml", ["schedule.steps=3"], 2)
    assert options.typed == ["a.yaml", "--ranks", "2", "schedule.steps=3"]


@pytest.fixture
def no_launcher(monkeypatch):
    for name in (*local_ranks.SET_BY_LAUNCHERS, "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "environment, files, ranks",
    [
        ({"DS_ACCELERATOR": "cpu"}, ["nvidia0", "nvidia1"], 1),
        ({}, ["nvidia0", "nvidia1", "nvidia12", "nvidiactl", "nvidia-uvm"], 3),
        ({}, [], 1),
        ({"CUDA_VISIBLE_DEVICES": "2,5"}, ["nvidia0"], 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["nvidia0"], 1),
    ],
)
def test_one_rank_for_each_gpu(tmp_path, monkeypatch, no_launcher, environment, files, ranks):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for file in files:
        (tmp_path / file).touch()
    monkeypatch.setattr(local_ranks, "DEVICES", tmp_path)
    assert local_ranks.default_ranks() == ranks


@pytest.mark.parametrize("asked, launched", [(1, {}), (None, {"RANK": "1"}), (2, {"WORLD_SIZE": "2"})])
def test_this_process_does_the_work_itself(monkeypatch, no_launcher, asked, launched):
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(local_ranks, "run_team", lambda *_, **__: pytest.fail("ranks were started"))
    local_ranks.start_ranks(asked, saves=True)


def test_ranks_that_a_launcher_did_not_start_are_not_dropped_silently(monkeypatch, no_launcher):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="--ranks 8, but a launcher has started this process as one of WORLD_SIZE=1"):
        local_ranks.start_ranks(8, saves=True)


def test_ranks_run_what_was_typed(monkeypatch, no_launcher):
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "megaunigame", "train", "a.yaml", "--ranks", "3"])
    started = []
    monkeypatch.setattr(local_ranks, "run_team", lambda *given, **_: started.append(given) or 75)
    with pytest.raises(SystemExit, match="75"):
        local_ranks.start_ranks(3, saves=True)
    assert started == [([sys.executable, "-u", "-m", "megaunigame", "train", "a.yaml", "--ranks", "3"], 3)]


def test_a_copied_recipe_is_the_shipped_one(tmp_path):
    words = ["-m", "megaunigame", "recipes", "copy", "tiny_sft", "--to", tmp_path / "mine.yaml"]
    done, again = run_script(*words), run_script(*words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.yaml").read_text() == (REPOSITORY / "launch/recipes/tiny_sft.yaml").read_text()
    assert again.returncode == 2 and "mine.yaml exists. Give another file with --to." in again.stderr


def test_settings_by_a_word(capsys):
    config.run(parsed("config", ["lora.rank", "eps_max"]))
    said = capsys.readouterr().out
    assert "model.lora.rank\n    int, " in said and "objectives.unigame.adversary.eps_max   (adversary perturber)" in said
    with pytest.raises(ConfigError, match="No key has optmizer in it. Did you mean 'optimizer'?"):
        config.run(parsed("config", ["optmizer"]))


def test_code_of_the_working_folder_is_not_imported(tmp_path):
    """A recipe of somebody else names plugins; `python -m` puts the working folder first."""
    (tmp_path / "odd_plugin.py").write_text("print('imported')")
    recipe = REPOSITORY / "launch/recipes/tiny_sft.yaml"
    command = [sys.executable, "-m", "megaunigame", "evaluate", recipe, "plugins=[odd_plugin]"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "imported" not in done.stdout and "plugins: no module 'odd_plugin'" in done.stderr
