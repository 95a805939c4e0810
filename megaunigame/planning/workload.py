"""What a recipe asks of every rank, without a model, data or a process group: objectives, rows, taps, micro-steps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from megaunigame.config import Recipe, fill, resolve_batch
from megaunigame.engine.ds_config import complete_ds_config
from megaunigame.models.base import Processor, UnifiedModel
from megaunigame.objectives.base import Objective
from megaunigame.passes import ATTACK, GENERATE, UNDERSTAND, AttackInputs, PassInputs, StepPlan, attack_plan, plan_from
from megaunigame.planning.meta_model import on_meta
from megaunigame.registry import find


@dataclass(frozen=True)
class Workload:
    """A recipe resolved for a number of ranks."""

    recipe: Recipe
    ranks: int
    family: type[UnifiedModel]
    objectives: tuple[Objective, ...]
    plan: StepPlan
    accumulation: int
    ds_config: dict[str, Any]

    def largest(self, processor: Processor) -> dict[str, PassInputs]:
        """Pass -> its largest legal rows, without data, with the attention that an objective measures."""
        return {name: self._tapped(name, processor.largest(self.plan.widest(name), name)) for name in self.plan.passes}

    def largest_attack(self, processor: Processor) -> AttackInputs | None:
        """The largest legal rows of an attack, without data; None where the plan has none."""
        if not self.plan.of_pass(ATTACK):
            return None
        plan = attack_plan(self.plan.widest(GENERATE))
        return AttackInputs(*(on_meta(processor.largest(plan, name)) for name in (GENERATE, UNDERSTAND)))

    def _tapped(self, name: str, inputs: PassInputs) -> PassInputs:
        asked = [taps for objective in self.objectives if (taps := objective.taps(name)) is not None]
        return dataclasses.replace(on_meta(inputs), taps=asked[0] if asked else None)


def workload(recipe: Recipe, ranks: int, folder: str) -> Workload:
    """Resolve `recipe` for `ranks`; `folder` has the configuration of the model.

    Raises ConfigError for what the trainer would refuse before it loads a model.
    """
    family = find("models", recipe.model.family, UnifiedModel)
    objectives = tuple(_objective(name, settings) for name, settings in recipe.objectives.items())
    turns = [t for objective in objectives if (t := objective.turns()) is not None]
    plan = plan_from((request for objective in objectives for request in objective.rows()), turns)
    for objective in objectives:
        objective.check_plan(plan)
        objective.check_family(family, recipe.model.family, folder)
    accumulation = resolve_batch(recipe.batch, plan.rows_per_micro_step(), ranks)
    ds_config = complete_ds_config(recipe, accumulation, ranks)
    return Workload(recipe, ranks, family, objectives, plan, accumulation, ds_config)


def _objective(name: str, settings: dict[str, Any]) -> Objective:
    kind = find("objectives", name, Objective)
    return kind.planned(fill(kind.Config, settings or {}, f"objectives.{name}"))
