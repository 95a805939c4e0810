"""From a recipe to the parts of a run, in one order: everything that can fail without a model comes before loading it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from megaunigame.checkpoint.manager import CheckpointManager
from megaunigame.config import Recipe, resolve_batch
from megaunigame.data.sources.opening import check_backend
from megaunigame.engine.ds_config import complete_ds_config
from megaunigame.engine.model_folder import model_folder
from megaunigame.engine.zero3 import Learner, build_learner
from megaunigame.errors import CheckpointError
from megaunigame.evaluation.run import run_evaluation
from megaunigame.evaluation.suites.base import Suite
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.building import build_objectives, build_plan
from megaunigame.parallel.mesh import Mesh
from megaunigame.registry import find
from megaunigame.settings import fill
from megaunigame.training.state import TrainState
from megaunigame.training.term_weights import TermWeights


class Assembly:
    """What a run and an evaluation have in common: the plan, the checkpoints, and the learner."""

    def __init__(self, recipe: Recipe, mesh: Mesh):
        """Raises UserError for everything that can be checked without the model."""
        self.recipe, self.mesh = recipe, mesh
        self.folder = Path(recipe.output)
        for name, stream in recipe.data.items():
            check_backend(f"data.{name}", stream)
        self.objectives = build_objectives(recipe)
        self.plan = build_plan(self.objectives)
        added = [term for objective in self.objectives for term in objective.added_terms(self.plan)]
        self.factors = TermWeights([*self.plan.terms, *added], self.plan.terms, recipe.weights)
        self.accumulation = resolve_batch(recipe.batch, self.plan.rows_per_micro_step(), mesh.data.size)
        self.ds_config = complete_ds_config(recipe, self.accumulation, mesh.world.size)
        self.suites = {label: _suite(label, settings) for label, settings in recipe.evaluation.suites.items()}
        self.checkpoints = CheckpointManager(self.folder, recipe.checkpoint.keep, mesh.world)
        self.resumed_from = self.checkpoints.find(recipe.checkpoint.resume)
        self.state = TrainState(weights=recipe.model.weights)
        if self.resumed_from is not None:
            self.state = TrainState.from_state_dict(self.checkpoints.train_state(self.resumed_from))
        if self.state.weights != recipe.model.weights:  # random or pretrained, as the run began
            raise CheckpointError(
                f"{self.resumed_from} belongs to a run with model.weights={self.state.weights}, this one has "
                f"model.weights={recipe.model.weights}. Give another `output`, or type checkpoint.resume=never; or "
                f"model.weights={self.state.weights} to resume it."
            )

    def build_learner(self) -> Learner:
        """The model under its engine, with the weights of the recipe."""
        model = self.recipe.model
        family = find("models", model.family, UnifiedModel)
        with model_folder(family, model) as path:
            for objective in self.objectives:
                objective.check_family(family, model.family, path, self.plan)
            placed = dataclasses.replace(self.recipe, model=dataclasses.replace(model, path=path))
            return build_learner(family, placed, self.plan, self.ds_config, self.mesh.world)

    def evaluate(self, learner: Learner) -> dict[str, Any]:
        """Run the recipe's suites on the current weights; results go to the run folder and are returned."""
        return run_evaluation(learner.module, self.suites, self.mesh.data, self.state.step, self.folder)


def _suite(label: str, settings: dict[str, Any]) -> Suite:
    settings = dict(settings or {})
    kind = find("evaluation.suites", settings.pop("suite", label), Suite)
    return kind(fill(kind.Config, settings, f"evaluation.suites.{label}"))
