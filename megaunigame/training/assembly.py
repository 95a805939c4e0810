"""From a recipe to the parts of a run, in one order: everything that can fail without a model comes before loading it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megaunigame.checkpoint.agreement import on_main
from megaunigame.checkpoint.base_identity import base_identity
from megaunigame.checkpoint.first_weights import keep_start
from megaunigame.checkpoint.manager import CheckpointManager
from megaunigame.checkpoint.runs import start_of
from megaunigame.checkpoint.starting import AdapterWeights, checked_start, find_start, open_adapter
from megaunigame.config import OFF, PARTIAL, RANDOM, Recipe, resolve_batch
from megaunigame.data.sources.opening import check_backend
from megaunigame.engine.ds_config import complete_ds_config
from megaunigame.engine.model_folder import model_folder
from megaunigame.engine.parameters import LORA
from megaunigame.engine.zero3 import Learner, build_learner
from megaunigame.errors import ConfigError
from megaunigame.evaluation.run import run_evaluation
from megaunigame.evaluation.suites.base import Suite
from megaunigame.models.base import UnifiedModel
from megaunigame.objectives.building import build_objectives, build_plan
from megaunigame.parallel.mesh import Mesh
from megaunigame.registry import find
from megaunigame.settings import fill
from megaunigame.training.resuming import check_batch, check_first_weights, continued, describe
from megaunigame.training.run_lock import check_held_here
from megaunigame.training.state import TrainState
from megaunigame.training.term_weights import TermWeights


class Assembly:
    """What a run and an evaluation have in common: the plan, the checkpoints, and the learner."""

    def __init__(self, recipe: Recipe, mesh: Mesh, *, trains: bool):
        """`trains`: this launch saves, so `checkpoint.resume` counts once. Raises UserError for everything that can be checked
        without the model."""
        self.recipe, self.mesh = recipe, mesh
        if recipe.engine.expect_ranks not in (0, mesh.world.size):
            raise ConfigError(
                f"engine.expect_ranks={recipe.engine.expect_ranks}, but this launch has {mesh.world.size}. "
                f"Look at the host file and the launcher's first lines, or type engine.expect_ranks={mesh.world.size}."
            )
        self.folder = Path(recipe.output)
        for name, stream in recipe.data.items():
            check_backend(f"data.{name}", stream)
        self.objectives = build_objectives(recipe)
        self.plan = build_plan(self.objectives)
        added = [term for objective in self.objectives for term in objective.added_terms(self.plan)]
        self.factors = TermWeights(self.plan, added, recipe.given_weights)
        self.accumulation = resolve_batch(recipe.batch, self.plan.rows_per_micro_step(), mesh.data.size)
        self.ds_config = complete_ds_config(recipe, self.accumulation, mesh.world.size)
        self.suites = {label: _suite(label, settings) for label, settings in recipe.evaluation.suites.items()}
        self.checkpoints = CheckpointManager(self.folder, recipe.checkpoint.keep, mesh.world, check_held_here)
        self.resumed_from = self.checkpoints.find(recipe.checkpoint.resume, once=trains)
        self.saved_state: TrainState | None = None
        """As the launch left it that saved it."""
        self.start = ""
        """Where the weights are that the run began with, if not in `model.path`."""
        self.state = self._fresh_state() if self.resumed_from is None else self._resumed_state(self.resumed_from)
        self.adapter = self._adapter()

    def _adapter(self) -> AdapterWeights | None:
        """Adapters to begin with; a run that is resumed has its own."""
        model = self.recipe.model
        return open_adapter(model.adapter, model.lora) if model.adapter and self.resumed_from is None else None

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step, over all ranks."""
        return self.plan.rows_per_micro_step() * self.accumulation * self.mesh.data.size

    def _fresh_state(self) -> TrainState:
        model = self.recipe.model
        start = self.start = on_main(self.mesh.world, lambda: find_start(model.weights_from))
        reset = self.recipe.checkpoint.reset_data
        return TrainState(
            weights=model.weights,
            weights_from=model.weights_from,
            start=start,
            lora=self._lora(),
            base=self._base(start),
            ranks=self.mesh.world.size,
            rows_per_step=self.rows_per_step,
            data_reset=reset,
            resume=self.recipe.checkpoint.resume,
        )

    def _resumed_state(self, folder: Path) -> TrainState:
        """Raises CheckpointError when the run began with other weights than the recipe names now."""
        saved = self.saved_state = TrainState.from_state_dict(self.checkpoints.train_state(folder))
        self.start = on_main(self.mesh.world, lambda: start_of(folder, dataclasses.asdict(saved)))
        base = self._base(self.start)
        check_first_weights(folder, saved, self.recipe.model, base)
        state = continued(saved, self.recipe.checkpoint, self.mesh.world.size, self.rows_per_step)
        return dataclasses.replace(state, lora=self._lora(), base=saved.base or base)

    def _lora(self) -> dict[str, Any]:
        model = self.recipe.model
        return dataclasses.asdict(model.lora) if model.train == LORA else {}

    def _base(self, start: str) -> str:
        """Collective: rank 0 looks at the weights that the recipe names now."""
        model = self.recipe.model
        return "" if model.weights == RANDOM else on_main(self.mesh.world, lambda: base_identity(model.path, start))

    def check_batch(self) -> None:
        """Raises CheckpointError when another number of ranks makes other steps of a resumed run. An evaluation has none."""
        if self.resumed_from is not None and self.saved_state is not None:
            rows = self.plan.rows_per_micro_step()
            check_batch(self.resumed_from, self.saved_state, self.recipe, self.mesh.world.size, rows, self.rows_per_step)

    def keep_start(self) -> None:
        """Collective: keep the checkpoint of another run that this one began with. Only for a launch that holds the folder."""
        self.state.kept_start = on_main(self.mesh.world, lambda: keep_start(self.folder, self.start))

    def how_resumed(self) -> str:
        """What to say of it on the console; empty for a fresh run."""
        if self.resumed_from is None or self.saved_state is None:
            return ""
        checkpoint, ranks, rows, plan = self.recipe.checkpoint, self.mesh.world.size, self.rows_per_step, self.plan
        rotates = bool(plan.rotations)
        return describe(self.resumed_from, self.saved_state, checkpoint, ranks, rows, rotates=rotates, streams=plan.streams)

    def build_learner(self) -> Learner:
        """The model under its engine, with the weights of the recipe."""
        model = self.recipe.model
        family = find("models", model.family, UnifiedModel)
        with model_folder(family, model) as path:
            for objective in self.objectives:
                objective.check_family(family, model.family, path, self.plan)
            placed = dataclasses.replace(self.recipe, model=dataclasses.replace(model, path=path))
            weights = None if model.weights == RANDOM else checked_start(family, path, self.start, self.mesh.world)
            learner = build_learner(family, placed, self.plan, self.ds_config, self.mesh.world, weights, self.adapter)
        if model.stored_codes != OFF:
            learner.module.use_stored_codes(partial=model.stored_codes == PARTIAL)
        return learner

    def origin(self) -> dict[str, str]:
        """Where the first weights come from, as absolute paths, for the record of the run."""
        model = self.recipe.model
        named = {"model": model.path, "weights_from": self.state.start, "adapter": model.adapter}
        return {name: os.path.abspath(path) for name, path in named.items() if path}

    def evaluate(self, learner: Learner, leave_point: Callable[[], None] = UnifiedModel.leave_point) -> dict[str, Any]:
        """Run the recipe's suites on the current weights; results go to the run folder and are returned.

        `leave_point`: as in `run_evaluation`.
        """
        return run_evaluation(learner.module, self.suites, self.mesh.data, self.state.step, self.folder, leave_point)


def _suite(label: str, settings: dict[str, Any]) -> Suite:
    settings = dict(settings or {})
    kind = find("evaluation.suites", settings.pop("suite", label), Suite)
    return kind(fill(kind.Config, settings, f"evaluation.suites.{label}"))
