"""Sweep files: what is refused and with which words; overrides; the runs that come out."""

from __future__ import annotations

import pytest
import yaml

from megaunigame.config import load_recipe
from megaunigame.errors import ConfigError
from megaunigame.objectives.building import build_objectives, build_plan
from megaunigame.sweeping.definition import load_sweep
from megaunigame.sweeping.runs import as_typed, plan_runs, write_origin
from tests.multi_process.launcher import REPOSITORY
from tests.sweeping.sweep_files import write_sweep

BAD_FILES = {
    "unknown key": ({"seed": 3}, ["'seed'", "Did you mean 'seeds'"]),
    "unknown key of the axis": ({"x": {"titel": "lr"}}, ["'titel'", "Did you mean 'title'"]),
    "missing key": ({"recipe": None}, ["recipe"]),
    "no arms": ({"arms": {}}, ["at least one arm"]),
    "arm without a mapping": ({"arms": {"plain": {}, "fast": None}}, ["sweep.arms.fast", "must be a mapping"]),
    "common is a list": ({"common": ["a=1"]}, ["sweep.common", "must be a mapping"]),
    "arm sets the seed": ({"arms": {"plain": {"seed": 3}}}, ["sweep.arms.plain", "'seed'"]),
    "arm is not a folder": ({"arms": {"a/b": {}}, "baseline": ""}, ["'a/b'"]),
    "baseline is not an arm": ({"baseline": "plane"}, ["'plane'", "Did you mean 'plain'"]),
    "no value on the axis": ({"x": {"title": "lr", "values": {"plain": 1.0}}}, ["no value for arm 'fast'"]),
    "value of no arm": ({"x": {"title": "lr", "values": {"fat": 1.0}}}, ["'fat'", "Did you mean 'fast'"]),
    "axis without title": ({"x": {"values": {"fast": 1.0}}}, ["title"]),
    "logarithm of 0": ({"x": {"title": "lr", "values": {"fast": 0.0}, "log": True}}, ["x.values.fast"]),
    "same seed twice": ({"seeds": [1, 1]}, ["different numbers"]),
    "no metrics": ({"metrics": {}}, ["sweep.metrics is empty"]),
    "no ranks": ({"ranks": 0}, ["sweep.ranks"]),
    "no such recipe": ({"recipe": "nowhere.yaml"}, ["No recipe at nowhere.yaml"]),
    "misspelt override": ({"arms": {"plain": {"optimizer.lrr": 1}}}, ["Arm 'plain'", "Did you mean 'lr'"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(tmp_path, case):
    settings, words = BAD_FILES[case]
    with pytest.raises(ConfigError) as error:
        plan_runs(load_sweep(write_sweep(tmp_path, **settings), [], []))
    assert all(word in str(error.value) for word in words), error.value


BAD_ARGUMENTS = {
    "no equals sign": (["seeds"], [], "'seeds' has no '='"),
    "unknown key": (["sedes=[1]"], [], "Did you mean 'seeds'"),
    "recipe setting without --set": (["schedule.steps=2"], [], "'schedule'"),
    "an arm sets it": ([], ["optimizer.lr=1"], "arm 'fast'"),
    "an arm sets a part of it": ([], ["optimizer={lr: 1}"], "arm 'fast'"),
    "the sweep gives it": ([], ["output=a"], "--set output"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(tmp_path, case):
    overrides, settings, words = BAD_ARGUMENTS[case]
    with pytest.raises(ConfigError) as error:
        load_sweep(write_sweep(tmp_path), overrides, settings)
    assert words in str(error.value), error.value


def test_no_sweep_file():
    with pytest.raises(ConfigError, match="No sweep file at nowhere.yaml"):
        load_sweep("nowhere.yaml", [], [])


def test_runs_seed_by_seed_with_overrides_as_typed(tmp_path):
    sweep = load_sweep(write_sweep(tmp_path), ["seeds=[3,4]", "ranks=2"], ["schedule.steps=7", "optimizer.clip=0.1"])
    runs = plan_runs(sweep)
    assert [run.name for run in runs] == ["plain/seed-3", "fast/seed-3", "plain/seed-4", "fast/seed-4"]
    folder = tmp_path / "out/fast/seed-4"
    assert runs[3].overrides == ("schedule.steps=7", "optimizer.clip=0.1", "optimizer.lr=0.05", "seed=4", f"output={folder}")
    assert runs[3].folder == folder and runs[3].steps == 7 and sweep.ranks == 2
    recipe = load_recipe(runs[3].recipe, list(runs[3].overrides))
    assert (recipe.seed, recipe.optimizer.lr, recipe.optimizer.clip, recipe.output) == (4, 0.05, 0.1, str(folder))


def test_an_arm_wins_over_common(tmp_path):
    path = write_sweep(tmp_path, common={"schedule.steps": 4, "optimizer.lr": 1.0})
    overrides = {run.arm: run.overrides for run in plan_runs(load_sweep(path, ["seeds=[0]"], []))}
    assert "optimizer.lr=1.0" in overrides["plain"]
    assert [o for o in overrides["fast"] if o.startswith("optimizer.lr")] == ["optimizer.lr=0.05"]


@pytest.mark.parametrize("value", [None, True, 3, 5e-5, 0.1, "null", "1", "a b: c", "", [1, "x"], {"a": {"b": None}}, "ä" * 90])
def test_a_typed_value_is_read_back(value):
    text = as_typed(value)
    assert "\n" not in text and yaml.safe_load(text) == value


def test_another_origin_is_refused(tmp_path):
    path = write_sweep(tmp_path)
    for run in plan_runs(load_sweep(path, [], [])):
        write_origin(run)
    assert len(plan_runs(load_sweep(path, [], []))) == 4, "the same command goes on"
    assert len(plan_runs(load_sweep(path, ["seeds=[0,1,2]"], []))) == 6, "and may add seeds"
    with pytest.raises(ConfigError, match=r"schedule.steps=4.*schedule.steps=5.*Delete .*plain/seed-0.*another output"):
        plan_runs(load_sweep(path, [], ["schedule.steps=5"]))
    with pytest.raises(ConfigError, match="had 1 ranks and now has 2"):
        plan_runs(load_sweep(path, ["ranks=2"], []))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("# a comment changes nothing\n" + recipe.read_text())
    plan_runs(load_sweep(path, [], []))
    recipe.write_text(recipe.read_text().replace("weight_decay: 0.1", "weight_decay: 0.2"))
    with pytest.raises(ConfigError, match="settings in .*recipe.yaml have changed"):
        plan_runs(load_sweep(path, [], []))


def test_a_folder_that_no_sweep_made_is_refused(tmp_path):
    path = write_sweep(tmp_path)
    (tmp_path / "out/plain/seed-0").mkdir(parents=True)
    (tmp_path / "out/plain/seed-0/run.json").write_text("{}")
    with pytest.raises(ConfigError, match="that no sweep made"):
        plan_runs(load_sweep(path, [], []))


@pytest.mark.parametrize("file", sorted(p.name for p in (REPOSITORY / "launch/sweeps").glob("*.yaml")))
def test_shipped_sweep_is_legal_down_to_the_objectives(file, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    sweep = load_sweep(f"launch/sweeps/{file}", ["output=runs/of_this_test"], [])
    runs = plan_runs(sweep)
    assert len(sweep.seeds) >= 3
    assert len(runs) == len(sweep.arms) * len(sweep.seeds) and len({run.overrides for run in runs}) == len(runs)
    for run in runs:
        recipe = load_recipe(run.recipe, list(run.overrides))
        assert build_plan(build_objectives(recipe)).passes, run.name
        labels = {metric.split("/")[1] for metric in sweep.metrics.values() if metric.startswith("evaluation/")}
        assert labels <= recipe.evaluation.suites.keys()
