"""From the recipe's `objectives` section to objectives and to the plan of their rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from megaunigame.config import Recipe
from megaunigame.errors import ConfigError
from megaunigame.models.base import Processor
from megaunigame.objectives.base import Objective
from megaunigame.objectives.player import Context, Player
from megaunigame.registry import find, unknown
from megaunigame.settings import fill
from megaunigame.step.inputs import PassInputs, Taps
from megaunigame.step.micro import MicroStep
from megaunigame.step.requests import StepPlan, plan_from


def build_objectives(recipe: Recipe, *, planned: bool = False) -> list[Objective]:
    """In the recipe's order; `planned`: without reading anything from disk.

    Raises ConfigError for names and settings that do not exist.
    """
    objectives = []
    for name, given in recipe.objectives.items():
        kind = find("objectives", name, Objective)
        settings = fill(kind.Config, given or {}, f"objectives.{name}")
        objectives.append(kind.planned(settings) if planned else kind(settings))
        objectives[-1].name = name
        requests = [request for request in objectives[-1].rows() if request.count]
        if requests and kind.row is Objective.row:
            raise ConfigError(
                f"objectives.{name} requests rows, and its class {kind.__name__} has no method `row` to make them."
            )
        for request in requests:
            if request.stream is not None and request.stream not in recipe.data:
                problem = unknown(f"stream of its {request.term} rows", request.stream, sorted(recipe.data))
                raise ConfigError(f"objectives.{name}: {problem} Type objectives.{name}.stream={min(recipe.data)}.")
    return objectives


def build_plan(objectives: Sequence[Objective], *, balance: bool = False) -> StepPlan:
    """The plan of all requested rows. `balance`: as in the recipe. Raises ConfigError when they are incompatible."""
    rotations = [rotation for o in objectives if (rotation := o.rotation()) is not None]
    plan = plan_from((r for o in objectives for r in o.rows()), rotations)
    owners: dict[str, list[str]] = {}
    for o in objectives:
        for term in (*(r.term for r in o.rows() if r.count and not r.aside), *o.added_terms(plan)):
            owners.setdefault(term, []).append(o.name)
    for term, names in owners.items():
        if len(names) > 1:
            raise ConfigError(f"Two objectives have a loss term {term!r}: {', '.join(names)}. Remove one from `objectives`.")
    if len(measuring := [o.name for o in objectives if o.measures_attention]) > 1:
        raise ConfigError(f"Two objectives measure attention: {', '.join(measuring)}. Remove one from `objectives`.")
    for objective in objectives:
        objective.check_plan(plan)
    by_term = {r.term: r for r in plan.requests}
    for request in plan.requests:
        owner = by_term.get(request.shares or request.term)
        if owner is None or (owner.stream, owner.count) != (request.stream, request.count):
            raise ConfigError(
                f"The {request.count} rows of {request.term!r} share the samples of {request.shares!r}, which must be as many "
                f"rows of the same stream ({request.stream}). Terms with rows: {', '.join(by_term)}."
            )
    return plan.with_spare_places() if balance else plan


def build_players(objectives: Sequence[Objective], context: Context) -> list[Player]:
    """In the order of the objectives. Raises ConfigError for a player with a loss that its objective does not announce."""
    players = []
    for objective in objectives:
        player = objective.player(context)
        if player is None:
            continue
        player.name = objective.name
        losses = {*(term.term for term in player.terms), *player.losses}
        if unnamed := losses - set(objective.added_terms(context.plan)):
            raise ConfigError(
                f"The player of {objective.name} has a loss {min(unnamed)!r}, which its `added_terms` does not name."
            )
        players.append(player)
    return players


def taps_of(players: Sequence[Player], pass_name: str) -> Taps | None:
    """The attention measurement that a player requests of a pass; one objective of a recipe may have such a player."""
    return next((taps for player in players if (taps := player.taps(pass_name)) is not None), None)


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
