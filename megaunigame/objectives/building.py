"""From the recipe's `objectives` section to objectives and to the plan of their rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from megaunigame.config import Recipe
from megaunigame.errors import ConfigError
from megaunigame.models.base import Processor
from megaunigame.objectives.base import Objective
from megaunigame.objectives.player import Context, Player
from megaunigame.registry import find
from megaunigame.settings import fill
from megaunigame.step.inputs import PassInputs, Taps
from megaunigame.step.micro import MicroStep
from megaunigame.step.requests import StepPlan, plan_from


def build_objectives(recipe: Recipe, *, planned: bool = False) -> list[Objective]:
    """In the recipe's order; `planned`: without reading anything from disk.

    Raises ConfigError for names and settings that do not exist.
    """
    kinds = {name: find("objectives", name, Objective) for name in recipe.objectives}
    settings = {name: fill(kind.Config, recipe.objectives[name] or {}, f"objectives.{name}") for name, kind in kinds.items()}
    return [kind.planned(settings[name]) if planned else kind(settings[name]) for name, kind in kinds.items()]


def build_plan(objectives: Sequence[Objective]) -> StepPlan:
    """The plan of all requested rows. Raises ConfigError when they are incompatible."""
    rotations = [rotation for o in objectives if (rotation := o.rotation()) is not None]
    plan = plan_from((r for o in objectives for r in o.rows()), rotations)
    names = [*plan.terms, *(term for o in objectives for term in o.added_terms(plan))]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"Two objectives have a loss term {twice[0]!r}. Remove one of them from `objectives`.")
    if sum(o.measures_attention for o in objectives) > 1:
        raise ConfigError("Two objectives measure attention. Remove one of them from `objectives`.")
    for objective in objectives:
        objective.check_plan(plan)
    return plan


def build_players(objectives: Sequence[Objective], context: Context) -> list[Player]:
    """In the order of the objectives. Raises ConfigError when two of them measure the attention of one pass."""
    players = [player for o in objectives if (player := o.player(context)) is not None]
    for name in context.plan.passes:
        taps_of(players, name)
    return players


def taps_of(players: Sequence[Player], pass_name: str) -> Taps | None:
    """The attention measurement that a player requests of a pass."""
    asked = [taps for player in players if (taps := player.taps(pass_name)) is not None]
    if len(asked) > 1:
        raise ConfigError(f"Two objectives measure the attention of the {pass_name} pass. Remove one from `objectives`.")
    return asked[0] if asked else None


def largest_micro_step(processor: Processor, players: Sequence[Player], plan: StepPlan) -> MicroStep:
    """The largest legal rows of every pass, with the attention that players measure, and the largest rows aside."""
    inputs = {
        name: dataclasses.replace(_with_texts(processor.largest(plan.widest(name), name)), taps=taps_of(players, name))
        for name in plan.passes
    }
    aside = {r.term: _with_texts(processor.largest(plan.alone(r), r.pass_name)) for r in plan.aside}
    return MicroStep(0, plan, inputs, aside)


def _with_texts(inputs: PassInputs) -> PassInputs:
    return dataclasses.replace(inputs, texts=[("largest", "largest")] * len(inputs.tokens))
