"""The trainer: objectives ask for rows, the trainer runs the passes.

One optimizer step is: fetch `accumulation` micro-batches, agree on the count of every loss term over all ranks, then for
each micro-batch, and for each pass of the plan, one forward and its backward. The plan is the same on all ranks and does not
depend on the data, so ranks stay in lockstep.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from megaunigame.config import Recipe
from megaunigame.data.loading.bad_samples import BadSampleCounter
from megaunigame.data.loading.stream import MicroBatch, MicroBatches, MicroBatchLoader
from megaunigame.data.sources.base import Stream
from megaunigame.data.sources.opening import open_stream
from megaunigame.engine.dry_run import checked_peak, dry_run
from megaunigame.engine.memory_plan import describe
from megaunigame.errors import Interrupted
from megaunigame.evaluation.run import as_text, evaluation_file, scalars
from megaunigame.monitoring.monitor import Monitor
from megaunigame.objectives.building import build_players, largest_micro_step
from megaunigame.objectives.player import Context
from megaunigame.parallel.interruption import SAVES, Interruption
from megaunigame.parallel.mesh import Mesh
from megaunigame.step.phases import Phases, PhaseTimer
from megaunigame.training.assembly import Assembly
from megaunigame.training.row_counts import RowCounter
from megaunigame.training.stepping import Stepper


class Trainer:
    """Builds and runs a training."""

    micro_batches_of: ClassVar[type[MicroBatches]] = MicroBatches
    """Makes the rows of a micro-step."""

    def __init__(self, recipe: Recipe, mesh: Mesh, phases: PhaseTimer | None = None, stop: Interruption | None = None):
        """`phases`: times the phases of each step. `stop`: the signals of this process; without it none are heard."""
        self.stop = stop or Interruption()
        self.interrupted = ""
        """After `fit`: how a signal ended it; empty: the run is complete."""
        self.mesh, self.parts = mesh, Assembly(recipe, mesh)
        parts = self.parts
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
        self.stepper = Stepper(parts, self.learner, self.players, self.bad_samples, self.rows, phases or Phases(), self.stop)
        self.stepper.factors.load_state_dict(self.state.factors)
        if self.resumed_from:
            parts.checkpoints.load(self.learner, self.resumed_from)
            for player in self.players:
                player.load(self.resumed_from)
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
        """Train to the last step of the schedule, or until a signal asks the run to stop; saves at the end either way.

        A signal is heeded after the step, the save or the model call of an evaluation that it meets. Then the run saves what is
        not saved yet; an evaluation that is left or does not begin is done by the next launch.
        """
        recipe, first, last = self.recipe, self.first_step, self.recipe.schedule.steps
        self.stop.phase = SAVES
        self.dry_run()
        self.stop.agree(self.world)
        monitor = Monitor(
            self.folder,
            every=recipe.monitor.every,
            total_steps=last,
            start_step=first + 1,
            rank=self.world.rank,
            tensorboard=recipe.monitor.tensorboard,
            progress=recipe.monitor.progress,
        )
        evaluated = not self._owes_evaluation(first) or self._evaluate_into(monitor)
        micro_batches = self._loader()
        saved, seconds = first, 0.0
        while self.state.step < last and not self.stop.agreed:
            metrics = self.train_step(micro_batches)
            monitor.log(self.state.step, metrics)
            monitor.panels(self.state.step, [panel for player in self.players for panel in player.panels()])
            step = self.state.step
            if step % recipe.checkpoint.every == 0 or step == last or self.stop.agreed:
                saved, seconds = step, self._save_and_agree()
            evaluated = not self._evaluation_is_due(step) or self._evaluate_into(monitor)
        if saved != self.state.step:
            saved, seconds = self.state.step, self._save_and_agree()
        if self.stop.agreed and not (evaluated and saved == last):
            self.interrupted = self._how_it_ended(seconds, evaluated)
        for summary in (self.rows.as_text(), self.bad_samples.as_text()):
            if summary:
                monitor.say(summary)
        monitor.close()

    def train_step(self, micro_batches: Iterator[MicroBatch]) -> dict[str, float]:
        """One optimizer step; returns its metrics, equal on all ranks."""
        metrics = self.stepper.step(self.state.step, micro_batches)
        self.state.step += 1
        self.state.cursors = self.micro_batches.cursors(self.state.step - self.first_step)
        return metrics

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        self.state.bad_samples, self.state.rows = self.bad_samples.state_dict(), self.rows.state_dict()
        self.state.factors = self.stepper.factors.state_dict()
        others = [player.save for player in self.players]
        self.parts.checkpoints.save(self.learner, dataclasses.asdict(self.state), self.state.step, others)

    def _loader(self) -> Iterator[MicroBatch]:
        loader, last = self.recipe.loader, (self.recipe.schedule.steps - self.first_step) * self.accumulation
        on_gpu = self.world.device.type == "cuda"
        return iter(MicroBatchLoader(self.micro_batches, 0, last, loader.workers, loader.prefetch, pin_memory=on_gpu))

    def _evaluation_is_due(self, step: int) -> bool:
        evaluation = self.recipe.evaluation
        if not self.parts.suites:
            return False
        if step == 0:
            return evaluation.before
        return step == self.recipe.schedule.steps or bool(evaluation.every and step % evaluation.every == 0)

    def _owes_evaluation(self, first: int) -> bool:
        """Whether the step that this launch begins with should be evaluated, and no earlier launch has done it."""
        done = first > 0 and evaluation_file(self.folder, first).exists()
        done = self.world.all_gather_object(done)[0]  # rank 0 decides: ranks may see different states of a shared folder
        return self._evaluation_is_due(first) and not done

    def _evaluate_into(self, monitor: Monitor) -> bool:
        """False: the ranks have agreed to stop, before it or in it. Nothing of it is recorded then."""
        try:
            if self.stop.agreed:
                return False
            evaluation = self.parts.evaluate(self.learner, lambda: self.stop.leave_if_agreed(self.world))
        except Interrupted:
            return False
        monitor.record(self.state.step, scalars(evaluation))
        monitor.say(f"evaluation after step {self.state.step}\n{as_text(evaluation)}")
        return True

    def _save_and_agree(self) -> float:
        """Save, and heed a signal that came in the save without another step; returns the seconds of the save."""
        started = time.monotonic()
        self.save()
        self.stop.agree(self.world)
        return time.monotonic() - started

    def _how_it_ended(self, seconds: float, evaluated: bool) -> str:
        """Collective: the last line of an interrupted run."""
        step, source = self.state.step, self.stop.source(self.world)
        if step == 0:
            return f"interrupted by {source} before step 1: nothing to save; the same command starts again"
        saved = f"saved step-{step:08d} in {seconds:.1f} s; " if seconds else ""
        owed = "" if evaluated else ", with the evaluation of that step"
        return f"interrupted by {source} after step {step}; {saved}the same command goes on from there{owed}"
