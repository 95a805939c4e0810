"""Plans that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

from megaunigame.config import Recipe, load_recipe
from megaunigame.planning.machines import cluster
from megaunigame.planning.plan import Plan, make_plan

REPOSITORY = Path(__file__).parents[2]
ON_A_GPU = ["engine.ds_config=ds_configs/zero2.json", "engine.precision=bf16"]
"""Weights that no coordinator gathers: a plan without a process group, so that it can be made in a test. bf16, as on a GPU."""


def tiny_recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(str(REPOSITORY / f"launch/recipes/{name}.yaml"), [*ON_A_GPU, *overrides])


def tiny(name: str, *overrides: str, ranks: int = 2) -> Plan:
    return make_plan(tiny_recipe(name, *overrides), cluster("h100-80g", 1, ranks))
