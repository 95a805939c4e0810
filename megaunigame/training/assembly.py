"""From a recipe to the parts of a run, in one order: everything that can fail without a model comes before loading it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megaunigame.checkpoint.adapter_folder import AdapterWeights, open_adapter
from megaunigame.checkpoint.agreement import on_main
from megaunigame.checkpoint.base_identity import base_identity
from megaunigame.checkpoint.first_weights import keep_start
from megaunigame.checkpoint.manager import CheckpointManager
from megaunigame.checkpoint.runs import start_of
from megaunigame.checkpoint.starting import checked_start, find_start
from megaunigame.config import AUTO, BF16, EMA, NEVER, NONE, OFF, PARTIAL, RANDOM, Recipe, resolve_batch
from megaunigame.data.loading.positions import StreamPositions
from megaunigame.data.sources.base import Stream
from megaunigame.data.sources.opening import check_backend, check_measured
from megaunigame.engine.compiling import check_compile
from megaunigame.engine.ds_config import complete_ds_config, zero_stage
from megaunigame.engine.fused_kernels import check_kernels
from megaunigame.engine.loading import silent
from megaunigame.engine.model_folder import model_folder
from megaunigame.engine.optimizer_slices import averaged
from megaunigame.engine.parameters import LORA
from megaunigame.engine.zero3 import Learner, build_learner
from megaunigame.errors import ConfigError, UserError
from megaunigame.evaluation.lockstep import together
from megaunigame.evaluation.run import run_evaluation
from megaunigame.evaluation.suites.base import Suite
from megaunigame.models.base import UnifiedModel
from megaunigame.monitoring.trackers.together import check_trackers
from megaunigame.objectives.building import build_objectives, build_plan
from megaunigame.parallel.accelerator import warn_of_slow_bf16
from megaunigame.parallel.mesh import Mesh
from megaunigame.registry import find
from megaunigame.settings import fill
from megaunigame.training.attention_choice import settled_attention
from megaunigame.training.changed_settings import described_changes
from megaunigame.training.epochs import Epochs, count_epochs, in_steps
from megaunigame.training.gathering import SuiteWeights
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
            if recipe.loader.balance:
                check_measured(f"data.{name}", stream)
        self.objectives = build_objectives(recipe)
        self.plan = build_plan(self.objectives, balance=recipe.loader.balance)
        added = [term for objective in self.objectives for term in objective.added_terms(self.plan)]
        self.factors = TermWeights(self.plan, added, recipe.given_weights)
        rows, shared_by = self.plan.rows_per_micro_step(), mesh.sequence.size
        self.accumulation = resolve_batch(recipe.batch, rows, mesh.data.size, shared_by)
        self.ds_config = complete_ds_config(recipe, self.accumulation, mesh.world.size)
        if not recipe.engine.compile == recipe.engine.kernels == NONE:
            together(mesh.world, self._check_layers)
        if trains:
            on_main(mesh.world, lambda: check_trackers(recipe.monitor.trackers))
        self.suites = {label: _suite(label, settings) for label, settings in recipe.evaluation.suites.items()}
        self.suite_weights = SuiteWeights(recipe.evaluation, mesh, recipe.engine.timeout_minutes)
        self.checkpoints = CheckpointManager(self.folder, recipe.checkpoint.keep, mesh.world, check_held_here)
        self.checkpoints.keeps_best = bool(recipe.checkpoint.best.metric)
        self.resumed_from = self.checkpoints.find(recipe.checkpoint.resume, once=trains)
        self.saved_state: TrainState | None = None
        """As the launch left it that saved it."""
        self.start = ""
        """Where the weights are that the run began with, if not in `model.path`."""
        self.state = self._fresh_state() if self.resumed_from is None else self._resumed_state(self.resumed_from)
        self.adapter = self._adapter()
        self.epochs: Epochs | None = None
        """What the steps of the schedule were counted from; None: from nothing, or not yet."""

    def count_steps(self, streams: Mapping[str, Stream]) -> None:
        """Collective: replace `schedule.epochs` of the recipe by the steps that they need. Raises ConfigError."""
        schedule = self.recipe.schedule
        if not schedule.epochs:
            return
        positions = StreamPositions(self.plan, self.accumulation, self.mesh.data.size)
        per_step = {name: positions.per_step(name) for name in streams}
        state = self.state
        self.epochs = on_main(self.mesh.world, lambda: count_epochs(schedule, streams, per_step, state.step, state.cursors))
        self.recipe = dataclasses.replace(self.recipe, schedule=in_steps(schedule, self.epochs))

    def _check_layers(self) -> None:
        """Raises ConfigError where layers cannot be compiled or fused: one machine may lack a compiler or a package."""
        check_compile(self.recipe.engine, zero_stage(self.ds_config), self.mesh.world.device)
        check_kernels(self.recipe.engine, self.mesh.world.device)

    def _adapter(self) -> AdapterWeights | None:
        """Adapters to begin with; a run that is resumed has its own."""
        model = self.recipe.model
        if not model.adapter or self.resumed_from is not None:
            return None
        return open_adapter(model.adapter, model.lora, find("models", model.family, UnifiedModel))

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
            sequence_ranks=self.mesh.sequence.size,
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
        shared_by = self.mesh.sequence.size
        return dataclasses.replace(state, lora=self._lora(), base=saved.base or base, sequence_ranks=shared_by)

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
            facts = (self.resumed_from, self.saved_state, self.recipe, self.mesh.world.size, rows, self.rows_per_step)
            check_batch(*facts, self.mesh.sequence.size)

    def keep_start(self) -> None:
        """Collective: keep the checkpoint of another run that this one began with. Only for a launch that holds the folder."""
        self.state.kept_start = on_main(self.mesh.world, lambda: keep_start(self.folder, self.start))

    def how_resumed(self) -> str:
        """What to say of it on the console, when the steps are counted; empty for a fresh run."""
        if self.resumed_from is None or self.saved_state is None:
            return ""
        checkpoint, ranks, rows, plan = self.recipe.checkpoint, self.mesh.world.size, self.rows_per_step, self.plan
        rotates = bool(plan.rotations)
        changes = described_changes(self.resumed_from, self.recipe)
        facts = (self.resumed_from, self.saved_state, checkpoint, ranks, rows)
        shared_by = self.mesh.sequence.size
        return describe(*facts, rotates=rotates, streams=plan.streams, changes=changes, shared_by=shared_by)

    def build_learner(self, say: Callable[[str], None] = silent) -> Learner:
        """The model under its engine, with the weights of the recipe. `say`: lines of rank 0 on how far the loading is."""
        model = self.recipe.model
        if self.recipe.engine.precision == BF16 and self.mesh.world.is_main:
            warn_of_slow_bf16(self.mesh.world.device)
        family = find("models", model.family, UnifiedModel)
        with model_folder(family, model) as path:
            for objective in self.objectives:
                objective.check_family(family, model.family, path, self.plan)
            family.check_sequence_ranks(path, self.mesh.sequence.size)
            chosen = settled_attention(self.recipe, self.suites, family, path, self.mesh.world)
            if chosen.reason and self.mesh.world.is_main:
                say(f"attention: model.attention={model.attention} takes {chosen.name} ({chosen.reason})")
            placed = dataclasses.replace(self.recipe, model=dataclasses.replace(model, path=path, attention=chosen.name))
            weights = None if model.weights == RANDOM else checked_start(family, path, self.start, self.mesh.world)
            facts = (family, placed, self.plan, self.ds_config, self.mesh.world, weights, self.adapter)
            learner = build_learner(*facts, say=say)
        if self.mesh.sequence.size > 1:
            learner.module.share_sequence(self.mesh.sequence)
        if model.stored_codes != OFF:
            learner.module.use_stored_codes(partial=model.stored_codes == PARTIAL)
        return learner

    @property
    def goes_on_here(self) -> bool:
        """Whether it is resumed from a checkpoint of its own folder, not from one of another run."""
        return self.resumed_from is not None and self.resumed_from.resolve().is_relative_to(self.folder.resolve())

    def origin(self) -> dict[str, str]:
        """Where the first weights come from, and the checkpoint of another run that this one goes on from, as absolute paths,
        for the record of the run."""
        model = self.recipe.model
        resume, began = self.recipe.checkpoint.resume, self.resumed_from
        elsewhere = "" if began is None or self.goes_on_here else str(began)
        if not elsewhere and resume not in (AUTO, NEVER):  # an earlier launch of the same command has gone on from there
            elsewhere = resume
        named = {"model": model.path, "weights_from": self.state.start, "adapter": model.adapter, "resumed": elsewhere}
        return {name: os.path.abspath(path) for name, path in named.items() if path}

    def check_drawing(self, learner: Learner, say: Callable[[str], None]) -> None:
        """Collective: `say` what drawing the pictures of an evaluation takes. Raises ConfigError for more than is allowed."""
        self.suite_weights.check_drawing(learner, list(self.suites.values()), say)

    def evaluate(
        self, learner: Learner, say: Callable[[str], None], leave_point: Callable[[], None] = UnifiedModel.leave_point
    ) -> dict[str, Any]:
        """Run the recipe's suites on the current weights, or on their average (`evaluation.weights`); results go to the run
        folder and are returned.

        `say`, `leave_point`: as in `run_evaluation`.
        """
        averages = self.recipe.evaluation.weights == EMA
        with averaged(learner) if averages else contextlib.nullcontext():
            with self.suite_weights.for_all(learner):
                around = partial(self.suite_weights.for_one, learner)
                step, folder = self.state.step, self.folder
                return run_evaluation(learner.module, self.suites, self.mesh.data, step, folder, leave_point, say, around)


def _suite(label: str, settings: dict[str, Any]) -> Suite:
    key, settings = f"evaluation.suites.{label}", dict(settings or {})
    kind = find("evaluation.suites", settings.pop("suite", label), Suite)
    config = fill(kind.Config, settings, key)
    try:
        return kind(config)
    except UserError as error:  # it opens shards and judges, which do not know whose they are
        raise type(error)(f"{key}: {error}") from error
