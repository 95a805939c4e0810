"""Every shipped recipe and sweep is legal: no misspelt key, no illegal setting, a plan with rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megaunigame.config import load_recipe
from megaunigame.engine.ds_config import complete_ds_config
from megaunigame.errors import ConfigError
from megaunigame.objectives.base import Objective
from megaunigame.objectives.building import build_plan
from megaunigame.registry import find
from megaunigame.settings import fill
from megaunigame.sweeping.definition import load_sweep
from tests.multi_process.launcher import REPOSITORY

RECIPES = sorted((REPOSITORY / "launch" / "recipes").glob("*.yaml"))
SWEEPS = sorted((REPOSITORY / "launch" / "sweeps").glob("*.yaml"))


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
    objectives = [_objective(name, settings) for name, settings in recipe.objectives.items()]
    plan = build_plan(objectives)
    assert {r.stream for r in plan.requests} - {None} <= set(recipe.data)
    complete_ds_config(recipe, 1, 2)


def test_missing_clip_weights_are_met_before_the_model(tmp_path):
    recipe = load_recipe("launch/recipes/janus_pro_7b_unigame.yaml", [])
    kind = find("objectives", "unigame", Objective)
    with pytest.raises(ConfigError, match=r"open_clip_model\.safetensors"):
        kind(fill(kind.Config, recipe.objectives["unigame"], "objectives.unigame"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweep_is_legal(path):
    sweep = load_sweep(str(path), [], [])
    assert len(sweep.seeds) >= 3
    for name, arm in sweep.arms.items():
        overrides = [f"{key}={value if value is not None else 'null'}" for key, value in {**sweep.common, **arm}.items()]
        recipe = load_recipe(sweep.recipe, overrides)
        objectives = [_objective(objective, settings) for objective, settings in recipe.objectives.items()]
        plan = build_plan(objectives)  # refuses a plan without rows
        assert plan.passes, name


def _objective(name: str, settings: dict[str, Any] | None) -> Objective:
    kind = find("objectives", name, Objective)
    return kind(fill(kind.Config, settings or {}, f"objectives.{name}"))
