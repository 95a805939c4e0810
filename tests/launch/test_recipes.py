"""Every shipped recipe is legal: no misspelt key, no illegal setting, a plan with rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from megaunigame.config import load_recipe
from megaunigame.engine.ds_config import complete_ds_config
from megaunigame.errors import ConfigError
from megaunigame.objectives.building import build_objectives, build_plan
from tests.multi_process.launcher import REPOSITORY

RECIPES = sorted((REPOSITORY / "launch" / "recipes").glob("*.yaml"))


@pytest.fixture(autouse=True)
def from_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)  # recipes name files relative to it


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_legal(path):
    recipe = load_recipe(str(path), [])
    assert recipe.name == path.stem
    for settings in recipe.objectives.values():
        clip = settings.get("clip") if settings else None
        if clip and not Path(clip.get("pretrained") or clip["model"]).exists():
            settings["clip"] = None  # the weights are the user's to bring
    plan = build_plan(build_objectives(recipe))
    assert {r.stream for r in plan.requests} - {None} <= set(recipe.data)
    complete_ds_config(recipe, 1, 2)


def test_missing_clip_weights_are_met_before_the_model():
    recipe = load_recipe("launch/recipes/janus_pro_7b_unigame.yaml", [])
    with pytest.raises(ConfigError, match=r"open_clip_model\.safetensors"):
        build_objectives(recipe)
