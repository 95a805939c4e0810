"""From the recipe's `objectives` section to objectives and to the plan of their rows."""

from __future__ import annotations

from collections.abc import Sequence

from megaunigame.config import Recipe
from megaunigame.objectives.base import Objective
from megaunigame.registry import find
from megaunigame.settings import fill
from megaunigame.step.requests import StepPlan, plan_from


def build_objectives(recipe: Recipe, *, planned: bool = False) -> list[Objective]:
    """In the recipe's order; `planned`: without reading anything from disk.

    Raises ConfigError for names and settings that do not exist.
    """
    kinds = {name: find("objectives", name, Objective) for name in recipe.objectives}
    settings = {name: fill(kind.Config, recipe.objectives[name] or {}, f"objectives.{name}") for name, kind in kinds.items()}
    return [kind.planned(settings[name]) if planned else kind(settings[name]) for name, kind in kinds.items()]


def build_plan(objectives: Sequence[Objective]) -> StepPlan:
    """The rows that all of them ask for. Raises ConfigError when they do not go together."""
    turns = [t for o in objectives if (t := o.turns()) is not None]
    plan = plan_from((r for o in objectives for r in o.rows()), turns)
    for objective in objectives:
        objective.check_plan(plan)
    return plan
