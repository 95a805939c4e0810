"""The trainer: objectives ask for rows, the trainer runs the passes.

One optimizer step is: fetch `accumulation` micro-batches, agree on the count of every loss term over all ranks, then for
each micro-batch, and for each pass of the plan, one forward and its backward. The plan is the same on all ranks and does not
depend on the data, so ranks stay in lockstep.
"""

from __future__ import annotations

import dataclasses
import logging
import signal
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor

from megaunigame.checkpoint.agreement import on_every_rank
from megaunigame.config import Recipe
from megaunigame.data.loading.bad_samples import BadSampleCounter
from megaunigame.data.loading.stream import MicroBatch, MicroBatches, MicroBatchLoader
from megaunigame.data.sources.base import Stream
from megaunigame.data.sources.opening import open_stream
from megaunigame.engine.dry_run import checked_peak, dry_run
from megaunigame.engine.element_bytes import OPTIMIZER
from megaunigame.engine.memory_plan import describe
from megaunigame.errors import DivergenceError
from megaunigame.evaluation.run import as_text, evaluation_file, scalars
from megaunigame.monitoring import names
from megaunigame.monitoring.monitor import Monitor
from megaunigame.objectives.building import build_players, largest_micro_step
from megaunigame.objectives.player import Context
from megaunigame.parallel.mesh import Mesh
from megaunigame.step.phases import Phases, PhaseTimer
from megaunigame.training.assembly import Assembly
from megaunigame.training.row_counts import RowCounter
from megaunigame.training.run_lock import check_held
from megaunigame.training.stepping import Stepper

log = logging.getLogger(__name__)


class Trainer:
    """Builds and runs a training."""

    micro_batches_of: ClassVar[type[MicroBatches]] = MicroBatches
    """Makes the rows of a micro-step."""

    def __init__(self, recipe: Recipe, mesh: Mesh, phases: PhaseTimer | None = None):
        """`phases`: times the phases of each step."""
        self.mesh, self.parts = mesh, Assembly(recipe, mesh)
        parts = self.parts
        parts.check_batch()
        self.recipe, self.world, self.folder = recipe, mesh.world, parts.folder
        self.plan, self.accumulation, self.state = parts.plan, parts.accumulation, parts.state
        self.resumed_from, self.first_step = parts.resumed_from, parts.state.step
        self.streams = self.open_streams()
        self.bad_samples = BadSampleCounter(self.plan, recipe.loader.max_bad_fraction)
        if self.resumed_from:
            self.bad_samples.load_state_dict(self.state.bad_samples)

        self.learner = parts.build_learner()
        if phases is not None:
            self.learner.measure(phases)
        self.processor = self.learner.module.processor
        context = Context(self.learner.module, self.learner.aside, self.plan, mesh.data, recipe.seed)
        self.players = build_players(parts.objectives, context)
        self.objective_of = {request.term: objective for objective in parts.objectives for request in objective.rows()}
        added = [term for player in self.players for term in player.terms]
        keys = {term: objective.name for term, objective in self.objective_of.items()}
        self.rows = RowCounter(self.plan, added, recipe.loader, keys)
        self.rows.load_state_dict(self.state.rows)
        self.stepper = Stepper(parts, self.learner, self.players, self.bad_samples, self.rows, phases or Phases())
        self.stepper.factors.load_state_dict(self.state.factors)
        self.stepper.divergence.load_state_dict(self.state.divergence)
        if self.resumed_from:
            parts.checkpoints.load(self.learner, self.resumed_from)
            on_every_rank(self.world, self._load_players)
        self.micro_batches = self.micro_batches_of(
            self.plan,
            self.objective_of,
            self.streams,
            self.processor,
            self.accumulation,
            mesh.data.rank,
            mesh.data.size,
            recipe.seed,
            self.first_step,
        )
        self.stepper.refused.micro_batches = self.micro_batches

    def _load_players(self) -> None:
        assert self.resumed_from is not None
        for player in self.players:
            player.load(self.resumed_from)

    def open_streams(self) -> dict[str, Stream]:
        """The plan's streams, each at its cursor or at its beginning."""
        return {
            name: open_stream(name, self.recipe.data[name], self.recipe.seed, self.state.cursors.get(name))
            for name in self.plan.streams
        }

    def describe(self) -> str:
        """The start-up plan."""
        largest = largest_micro_step(self.processor, self.players, self.plan).inputs
        return describe(self.learner.module, self.recipe, self.plan, largest, self.accumulation, self.world.size)

    def dry_run(self) -> None:
        """Forward and backward of every pass, and of the players, on the largest legal rows; changes nothing.

        Raises CapacityError when such a step does not fit into GPU memory.
        """
        with checked_peak(self.learner, self.parts.ds_config):
            micro = largest_micro_step(self.processor, self.players, self.plan)
            micro.inputs = {name: inputs.to(self.world.device) for name, inputs in micro.inputs.items()}
            leaves: list[Tensor] = [leaf for player in self.players for leaf in player.rehearse(micro)]
            dry_run(self.learner.module, micro.inputs, list(micro.losses.values()), leaves)

    def fit(self) -> None:
        """Train to the last step of the schedule, or until SIGTERM or SIGINT; saves at the end either way."""
        recipe, first = self.recipe, self.first_step
        self.dry_run()
        monitor = Monitor(
            self.folder,
            every=recipe.monitor.every,
            total_steps=recipe.schedule.steps,
            start_step=first + 1,
            rank=self.world.rank,
            tensorboard=recipe.monitor.tensorboard,
            progress=recipe.monitor.progress,
        )
        self._listen_for_signals()
        if first == 0 and recipe.evaluation.before:
            self._evaluate_into(monitor)
        micro_batches = self._loader()
        saved = first if self.resumed_from is not None else None
        while self.state.step < recipe.schedule.steps and not self.stepper.stop_requested:
            metrics = self.train_step(micro_batches)
            monitor.log(self.state.step, metrics | self._completed_saves(monitor))
            monitor.panels(self.state.step, [panel for player in self.players for panel in player.panels()])
            step = self.state.step
            if step % recipe.checkpoint.every == 0:
                self.begin_save()
                saved = step
            if recipe.evaluation.every and step % recipe.evaluation.every == 0 and step < recipe.schedule.steps:
                self._evaluate_into(monitor)
        if saved != self.state.step:
            self.begin_save()
        self.parts.checkpoints.wait()
        self._completed_saves(monitor)
        if self.state.step == recipe.schedule.steps and not self._was_evaluated_at_the_end():
            self._evaluate_into(monitor)
        for summary in (self.rows.as_text(), self.bad_samples.as_text()):
            if summary:
                monitor.say(summary)
        monitor.close()

    def train_step(self, micro_batches: Iterator[MicroBatch]) -> dict[str, float]:
        """One optimizer step; returns its metrics, equal on all ranks. Completes a save whose files are written."""
        try:
            metrics = self.stepper.step(self.state.step, micro_batches)
        except DivergenceError:  # on all ranks: the step of the save was still good
            self.parts.checkpoints.wait()
            raise
        self.parts.checkpoints.advance()
        self.state.step += 1
        self.state.cursors = self.micro_batches.cursors(self.state.step - self.first_step)
        return metrics

    def save(self) -> None:
        """Write a checkpoint of the current step; it is complete at the end."""
        self.begin_save()
        self.parts.checkpoints.wait()

    def begin_save(self) -> None:
        """Copy the state of the current step; the copy is written while the training goes on."""
        check_held(self.world)
        self.state.bad_samples, self.state.rows = self.bad_samples.state_dict(), self.rows.state_dict()
        self.state.factors, self.state.divergence = self.stepper.factors.state_dict(), self.stepper.divergence.state_dict()
        others = [player.pending for player in self.players]
        self.parts.checkpoints.begin(self.learner, dataclasses.asdict(self.state), self.state.step, others)

    def make_room(self) -> None:
        """Delete what a killed save has left, and compare the free disk with what checkpoints will need.

        Only for a launch that holds the run folder alone. Raises CheckpointError when not even one has room.
        """
        self.parts.checkpoints.clear_leftovers()
        trained = sum(getattr(p, "ds_numel", p.numel()) for group in self.learner.trained_groups for p in group)
        of_players = sum(size for player in self.players for size in player.host_bytes().values())
        self.parts.checkpoints.check_room(OPTIMIZER * trained + self.world.size * of_players)

    def _completed_saves(self, monitor: Monitor) -> dict[str, float]:
        """Say what was saved since the last call; returns metrics of the last."""
        metrics: dict[str, float] = {}
        for saved in self.parts.checkpoints.taken():
            monitor.say(str(saved))
            metrics = {names.PERF_SAVE_SECONDS: saved.seconds, names.PERF_SAVE_PAUSE_SECONDS: saved.paused}
        return metrics

    def _loader(self) -> Iterator[MicroBatch]:
        loader, last = self.recipe.loader, (self.recipe.schedule.steps - self.first_step) * self.accumulation
        on_gpu = self.world.device.type == "cuda"
        return iter(MicroBatchLoader(self.micro_batches, 0, last, loader.workers, loader.prefetch, pin_memory=on_gpu))

    def _evaluate_into(self, monitor: Monitor) -> None:
        if self.parts.suites:
            evaluation = self.parts.evaluate(self.learner)
            monitor.record(self.state.step, scalars(evaluation))
            monitor.say(f"evaluation after step {self.state.step}\n{as_text(evaluation)}")

    def _was_evaluated_at_the_end(self) -> bool:
        """Whether an earlier launch trained to the last step and evaluated it."""
        here = self.first_step == self.state.step and evaluation_file(self.folder, self.state.step).exists()
        return self.world.all_gather_object(here)[0]  # rank 0 decides: ranks may see different states of a shared folder

    def _listen_for_signals(self) -> None:
        """SIGTERM or SIGINT ends the run after the current step, with a checkpoint; the ranks agree on it in the step."""

        def request_stop(signum: int, _frame: Any) -> None:
            log.warning("%s received: saving after this step, then stopping.", signal.Signals(signum).name)
            self.stepper.signaled = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, request_stop)
