"""Files that come with the package are found from any folder, in a clone and in a wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from megaunigame import shipped
from megaunigame.config import load_recipe
from megaunigame.engine.ds_config import complete_ds_config
from megaunigame.errors import ConfigError
from megaunigame.shipped import RECIPES, SWEEPS, located, names, yaml_file
from megaunigame.sweeping.definition import load_sweep
from tests.multi_process.launcher import REPOSITORY


def test_a_recipe_by_its_name_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("tiny_sft", [])
    assert Path(recipe.model.path) == REPOSITORY / "megaunigame/tiny_world/weights/janus"
    assert Path(recipe.engine.ds_config).is_file() and recipe.output == "runs/tiny_sft"
    assert load_recipe("launch/recipes/tiny_sft.yaml", []).model.path == recipe.model.path
    recipe.engine.ds_config = "ds_configs/zero2.json"  # as the default of a recipe without the key
    assert complete_ds_config(recipe, 1, 1)


def test_the_working_folder_comes_first(tmp_path, monkeypatch):
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs" / "zero3.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert located("ds_configs/zero3.json") == "ds_configs/zero3.json"
    assert located("ds_configs/zero2.json") == str(REPOSITORY / "ds_configs/zero2.json")
    assert located("shards/train") == "shards/train"


def test_recipes_of_the_working_folder_are_more_names(tmp_path, monkeypatch):
    (tmp_path / RECIPES).mkdir(parents=True)
    (tmp_path / RECIPES / "mine.yaml").write_text("name: mine\n")
    monkeypatch.chdir(tmp_path)
    assert {"mine", "tiny_sft"} < set(names(RECIPES))
    assert yaml_file("mine", RECIPES, "recipe") == f"{RECIPES}mine.yaml"
    assert yaml_file("tiny_sft", RECIPES, "recipe") == str(REPOSITORY / RECIPES / "tiny_sft.yaml")


def test_every_shipped_file_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, kind in ((RECIPES, "recipe"), (SWEEPS, "sweep file")):
        assert names(folder) == sorted(file.stem for file in (REPOSITORY / folder).glob("*.yaml"))
        assert all(Path(yaml_file(name, folder, kind)).is_file() for name in names(folder))
    assert Path(load_sweep("unigame_budget", [], []).recipe).is_file()


def test_a_wheel_has_them_inside_the_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "megaunigame"
    (package / "launch" / "recipes").mkdir(parents=True)
    (package / "launch" / "recipes" / "mine.yaml").write_text("name: mine\n")
    monkeypatch.setattr(shipped, "ROOTS", (package.parent, package))
    monkeypatch.chdir(tmp_path)
    assert yaml_file("mine", RECIPES, "recipe") == str(package / "launch" / "recipes" / "mine.yaml")


def test_a_name_that_does_not_exist():
    with pytest.raises(ConfigError, match="No recipe at tiny_stf. Did you mean 'tiny_.*or a name: bagel_7b_512_unigame, "):
        load_recipe("tiny_stf", [])
