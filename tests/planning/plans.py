"""Plans that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

from megaunigame.config import Recipe, load_recipe
from megaunigame.planning.machines import cluster
from megaunigame.planning.plan import Plan, make_plan

REPOSITORY = Path(__file__).parents[2]
WHOLE = ["engine.ds_config=ds_configs/zero2.json"]
"""Weights that no coordinator gathers: a plan that needs no process group, so that it can be made in a test."""


def tiny_recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(str(REPOSITORY / f"launch/recipes/{name}.yaml"), [*WHOLE, *overrides])


def tiny(name: str, *overrides: str, ranks: int = 2) -> Plan:
    return make_plan(tiny_recipe(name, *overrides), cluster("h100-80g", 1, ranks))
