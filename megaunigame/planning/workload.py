"""The work of a recipe on every rank, without a model, data or a process group: objectives, rows, micro-steps."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaunigame.config import RANDOM, ModelConfig, Recipe, resolve_batch
from megaunigame.data.sources.opening import check_backend, check_measured
from megaunigame.engine.ds_config import complete_ds_config, zero_stage
from megaunigame.engine.model_folder import model_folder
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.base import Objective
from megaunigame.objectives.building import build_objectives, build_plan
from megaunigame.parallel.mesh import check_divides
from megaunigame.registry import find
from megaunigame.step.requests import StepPlan


@dataclass(frozen=True)
class Workload:
    """A recipe resolved for a number of ranks."""

    recipe: Recipe
    ranks: int
    family: type[UnifiedModel]
    folder: str
    """With the configuration of the model."""
    shape: str
    """Where the shape comes from, in words."""
    objectives: tuple[Objective, ...]
    plan: StepPlan
    accumulation: int
    ds_config: dict[str, Any]

    @property
    def sequence_ranks(self) -> int:
        """Ranks that share their rows."""
        return self.recipe.engine.sequence_ranks

    @property
    def data_ranks(self) -> int:
        """Ranks, or groups of them, that read different rows."""
        return self.ranks // self.sequence_ranks

    @property
    def stage(self) -> int:
        """Of ZeRO."""
        return zero_stage(self.ds_config)


@contextlib.contextmanager
def workload(recipe: Recipe, ranks: int) -> Iterator[Workload]:
    """Resolve `recipe` for `ranks`; a folder made for `model.size` exists inside the context.

    Raises ConfigError for what the trainer would refuse before it loads a model, and when the recipe has neither a folder at
    `model.path` nor a size.
    """
    sequence_ranks = recipe.engine.sequence_ranks
    check_divides(sequence_ranks, ranks)
    family = find("models", recipe.model.family, UnifiedModel)
    model = planned_model(recipe.model, family)
    for name, stream in recipe.data.items():
        check_backend(f"data.{name}", stream)
        if recipe.loader.balance:
            check_measured(f"data.{name}", stream)
    with model_folder(family, model) as folder:
        objectives = build_objectives(recipe, planned=True)
        plan = build_plan(objectives, balance=recipe.loader.balance)
        for objective in objectives:
            objective.check_family(family, model.family, folder, plan)
        family.check_sequence_ranks(folder, sequence_ranks)
        rows = plan.rows_per_micro_step()
        accumulation = resolve_batch(recipe.batch, rows, ranks // sequence_ranks, sequence_ranks)
        ds_config = complete_ds_config(recipe, accumulation, ranks)
        shape = shape_of(model)
        yield Workload(recipe, ranks, family, folder, shape, tuple(objectives), plan, accumulation, ds_config)


def planned_model(model: ModelConfig, family: type[UnifiedModel]) -> ModelConfig:
    """The model whose shape is planned: that of a run, or `model.size` if there is no folder at `model.path`.

    The same rule holds for plans, profiles and runs (`model_folder`): with random weights the size has priority over the
    folder, otherwise the folder over the size. Raises ConfigError if the recipe has neither.
    """
    if model.weights == RANDOM or Path(model.path or " ").is_dir():
        return model
    if not model.size:
        raise ConfigError(
            f"No model folder at model.path={model.path}, and the recipe names no size to plan with. Give another model.path, "
            f"or type model.size=NAME; the family {model.family!r} has {', '.join(family.sizes) or 'no sizes'}."
        )
    return dataclasses.replace(model, weights=RANDOM)


def shape_of(model: ModelConfig) -> str:
    """In words: where the shape of a `planned_model` comes from, and which size is not used."""
    if model.weights == RANDOM and model.size:
        return f"size {model.size} of {model.family}"
    unused = f"; model.size={model.size} is not used, type model.weights=random to plan with it" if model.size else ""
    return f"the configuration in {model.path}{unused}"
