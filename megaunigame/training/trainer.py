"""The trainer: objectives ask for rows, the trainer runs the passes.

One optimizer step is: fetch `accumulation` micro-batches, agree on the count of every loss term over all ranks, then for
each micro-batch, and for each pass of the plan, one forward and its backward. The plan is the same on all ranks and does not
depend on the data, so ranks stay in lockstep.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import ClassVar

from torch import Tensor

from megaunigame.checkpoint.agreement import on_every_rank
from megaunigame.config import SUBSTITUTE, Recipe, as_container, as_yaml, values_by_key
from megaunigame.data.loading.bad_samples import BadSampleCounter
from megaunigame.data.loading.loader import MicroBatchLoader
from megaunigame.data.loading.lost_shards import LostShardRule
from megaunigame.data.loading.stream import MicroBatch, MicroBatches
from megaunigame.data.sources.base import Stream
from megaunigame.data.sources.opening import open_stream
from megaunigame.engine.dry_run import checked_peak, dry_run
from megaunigame.engine.memory_plan import describe
from megaunigame.errors import Interrupted
from megaunigame.models.base import rehearsing
from megaunigame.monitoring import names
from megaunigame.monitoring.console import phase, say
from megaunigame.monitoring.monitor import Monitor
from megaunigame.monitoring.trackers.base import RunFacts
from megaunigame.objectives.building import build_players, largest_micro_step
from megaunigame.objectives.player import Context
from megaunigame.parallel.interruption import SAVES, Interruption
from megaunigame.parallel.mesh import Mesh
from megaunigame.parallel.pulse import DRY_RUN, LOADING, LOGGING, PULSE, RUN
from megaunigame.parallel.together import raise_together
from megaunigame.step.phases import PhaseTimer
from megaunigame.training.assembly import Assembly
from megaunigame.training.evaluating import Evaluations
from megaunigame.training.marks import MarkedPhases
from megaunigame.training.resuming import all_done, check_players, check_streams
from megaunigame.training.row_counts import RowCounter
from megaunigame.training.run_lock import lost_folder
from megaunigame.training.saves import Saves
from megaunigame.training.selection import Selection
from megaunigame.training.state import TrainState
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
        self.mesh, self.parts = mesh, Assembly(recipe, mesh, trains=True)
        parts = self.parts
        parts.check_batch()
        self.recipe, self.world, self.folder = recipe, mesh.world, parts.folder
        self.plan, self.accumulation, self.state = parts.plan, parts.accumulation, parts.state
        self.resumed_from, self.first_step = parts.resumed_from, parts.state.step
        self.streams = self.open_streams()
        if self.resumed_from:
            check_streams(self.resumed_from, self.state.cursors, self.streams)
        parts.count_steps(self.streams)
        self.recipe = recipe = parts.recipe
        self.bad_samples = BadSampleCounter(self.plan, recipe.loader.max_bad_fraction)
        if self.resumed_from:
            self.bad_samples.load_state_dict(self.state.bad_samples)

        self.selection = Selection(recipe.checkpoint.best, recipe.early_stop, recipe.evaluation)
        self.selection.load_state_dict(self.state.selection)
        self.evaluations = Evaluations(parts, self.stop, self.selection)
        self.stopped_before = self.evaluations.stopped_before()
        self._say_where_it_begins()
        what = recipe.model.path or f"{recipe.model.family}, random weights"
        with PULSE.phase(LOADING), phase(f"loading {what}", "loaded", shown=self.world.is_main):
            self.learner = parts.build_learner(say)
        if phases is not None:
            self.learner.measure(phases)
        marked = MarkedPhases(self.learner.phases)
        self.learner.phases = marked
        self.processor = self.learner.module.processor
        context = Context(self.learner.module, self.learner.aside, self.plan, mesh.data, recipe.seed)
        self.players = build_players(parts.objectives, context)
        keeping = [player.name for player in self.players if player.keeps_state]
        if self.resumed_from:
            check_players(self.resumed_from, self.folder, self.state.players, keeping)
        self.state.players = keeping
        self.objective_of = {request.term: objective for objective in parts.objectives for request in objective.rows()}
        added = [term for player in self.players for term in player.terms]
        keys = {term: objective.name for term, objective in self.objective_of.items()}
        self.rows = RowCounter(self.plan, added, recipe.loader, keys)
        self.rows.load_state_dict(self.state.rows)
        self.stepper = Stepper(parts, self.learner, self.players, self.bad_samples, self.rows, marked, self.stop)
        self.stepper.factors.load_state_dict(self.state.factors)
        self.stepper.divergence.load_state_dict(self.state.divergence)
        self.saves = Saves(parts, self.learner, self.players, self.selection, self.current_state)
        if self.resumed_from:
            with PULSE.phase(LOADING):
                parts.checkpoints.load(self.learner, self.resumed_from)
                on_every_rank(self.world, self._load_players)
        self.micro_batches = self.micro_batches_of(
            self.plan,
            self.objective_of,
            self.streams,
            self.processor.for_loader(),
            self.accumulation,
            mesh.data.rank,
            mesh.data.size,
            recipe.seed,
            self.first_step,
            self._lost_shards(),
            balance=recipe.loader.balance,
        )
        self.micro_batches.lost_shards.stopping = stopping
        self.stepper.refused.micro_batches = self.micro_batches

    def _say_where_it_begins(self) -> None:
        if self.world.is_main:
            in_epochs = self.parts.epochs is not None
            done = all_done(self.first_step, self.recipe.schedule.steps, in_epochs=in_epochs)
            stopped = f"{self.stopped_before}; raise early_stop.patience to go on" if self.stopped_before else ""
            lines = (self.parts.how_resumed(), self.selection.how_resumed(), done or stopped)
            for line in filter(None, lines):
                say(line)

    def _lost_shards(self) -> LostShardRule:
        loader, timeout = self.recipe.loader, 60 * self.recipe.engine.timeout_minutes
        return LostShardRule(loader.lost_shard_wait * timeout, timeout, loader.lost_shard == SUBSTITUTE)

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
        module, epochs = self.learner.module, self.parts.epochs
        shared_by = self.mesh.sequence.size
        facts = (module, self.recipe, self.plan, largest, self.accumulation, self.world.size)
        return describe(*facts, str(epochs or ""), shared_by)

    def dry_run(self) -> None:
        """Forward and backward of every pass, and of the players, on the largest legal rows; changes nothing.

        Raises CapacityError when such a step does not fit into GPU memory.
        """
        with checked_peak(self.learner, self.parts.ds_config), rehearsing(self.learner.module):
            micro = largest_micro_step(self.processor, self.players, self.plan)
            micro.inputs = {name: inputs.to(self.world.device) for name, inputs in micro.inputs.items()}
            leaves: list[Tensor] = [leaf for player in self.players for leaf in player.rehearse(micro)]
            dry_run(self.learner.module, micro.inputs, list(micro.losses.values()), leaves)

    def fit(self) -> None:
        """Train to the last step of the schedule, or until a metric has stopped improving, or until a signal asks the run to
        stop; saves at the end in any case.

        A signal is heeded after the step, the save or the model call of an evaluation that it meets; a wait for data that does
        not come, or for a lost shard, is left. Then the run saves what is
        not saved yet; an evaluation that is left or does not begin is done by the next launch.
        """
        first, last = self.first_step, self.recipe.schedule.steps
        self.stop.phase = SAVES
        if first < last and not self.stopped_before:
            # Before the dry run, whose peak then has what the groups of ranks of an evaluation take.
            self.parts.check_drawing(self.learner, say if self.world.is_main else lambda line: None)
            with PULSE.phase(DRY_RUN), phase("dry run on the largest legal rows", "dry run passed", shown=self.world.is_main):
                self.dry_run()
        PULSE.enter(RUN)
        self.stop.agree(self.world)
        monitor, self.saves.last = self._monitor(), first
        try:
            self._train(monitor)
        except Exception:
            monitor.close(complete=False)  # trackers still hold the last steps, which may show why
            raise
        monitor.close(complete=not self.interrupted)

    def _train(self, monitor: Monitor) -> None:
        recipe, first, last = self.recipe, self.first_step, self.recipe.schedule.steps
        self.saves.drop_lost_best()
        self.evaluations.record_missing(monitor)
        self.stepper.fetcher.finish = self.evaluations.keep = partial(self.saves.keep_last_step, monitor)
        evaluated = not self.evaluations.owed(first) or self.evaluations.run(self.learner, monitor)
        micro_batches = self._loader()
        self.saves.keep_best()
        while self.state.step < last and not self.stop.agreed and not self.selection.stopped:
            # Rank 0 alone writes and holds the folder, and must not stop alone.
            self.stepper.fetcher.failed = monitor.failed or lost_folder()
            try:
                metrics = self.train_step(micro_batches)
            except Interrupted:  # on all ranks, in the fetch of a step that the next launch makes
                self.stop.agreed = True
                break
            with PULSE.phase(LOGGING):
                monitor.log(self.state.step, metrics | self.saves.completed(monitor))
                monitor.panels(self.state.step, [panel for player in self.players for panel in player.panels()])
            step = self.state.step
            if step % recipe.checkpoint.every == 0 or step == last or self.stop.agreed:
                self.saves.begin()
                self.stop.agree(self.world)
            evaluated = True
            if self.evaluations.due(step):
                self.parts.checkpoints.wait()  # a kill in a long evaluation must not cost a save that is written
                self.saves.say(monitor)
                evaluated = self.evaluations.run(self.learner, monitor)
                self.saves.keep_best()
        self.saves.finish()
        save = self.saves.completed(monitor)
        raise_together(self.world, monitor.failed)
        complete = self.state.step == last or bool(self.selection.stopped)
        if self.stop.agreed and not (evaluated and complete):
            self.interrupted = self._how_it_ended(save, evaluated)
        for summary in (self.rows.as_text(), self.bad_samples.as_text(), self.selection.stopped):
            if summary:
                monitor.say(summary)

    def _monitor(self) -> Monitor:
        """Collective: rank 0 begins the logs, and all raise what it raises."""
        recipe, problem = self.recipe, None
        try:
            monitor = Monitor(
                self.folder,
                every=recipe.monitor.every,
                total_steps=recipe.schedule.steps,
                start_step=self.first_step + 1,
                rank=self.world.rank,
                trackers=recipe.monitor.trackers,
                progress=recipe.monitor.progress,
                run=RunFacts(recipe.name, as_yaml(recipe), values_by_key(as_container(recipe))),
                continues=self.resumed_from is None or self.parts.goes_on_here,
            )
        except OSError as error:
            problem = error
        raise_together(self.world, problem)
        return monitor

    def train_step(self, micro_batches: Iterator[MicroBatch]) -> dict[str, float]:
        """One optimizer step; returns its metrics, equal on all ranks. Completes a save whose files are written."""
        with PULSE.step(self.state.step + 1):
            metrics = self.stepper.step(self.state.step, micro_batches)
        self.parts.checkpoints.advance()
        self.state.step += 1
        # Added to: a stream that this launch does not read keeps its place for one that does.
        self.state.cursors = self.state.cursors | self.micro_batches.cursors(self.state.step - self.first_step)
        return metrics

    def current_state(self) -> TrainState:
        """What affects the next steps, but for the learner and the players."""
        self.state.bad_samples, self.state.rows = self.bad_samples.state_dict(), self.rows.state_dict()
        self.state.factors, self.state.divergence = self.stepper.factors.state_dict(), self.stepper.divergence.state_dict()
        self.state.selection = self.selection.state_dict()
        return self.state

    def _loader(self) -> Iterator[MicroBatch]:
        loader, last = self.recipe.loader, (self.recipe.schedule.steps - self.first_step) * self.accumulation
        on_gpu = self.world.device.type == "cuda"
        slow = loader.slow_seconds
        return iter(
            MicroBatchLoader(
                *(self.micro_batches, 0, last, loader.workers, loader.prefetch),
                pin_memory=on_gpu,
                slow_seconds=slow,
                stopping=stopping,
            )
        )

    def _how_it_ended(self, save: dict[str, float], evaluated: bool) -> str:
        """Collective: the last line of an interrupted run. `save`: metrics of the last save, if there was any."""
        step, source = self.state.step, self.stop.source(self.world)
        if step == 0:
            return f"interrupted by {source} before step 1: nothing to save; the same command starts again"
        saved = f"saved step-{step:08d} in {save[names.PERF_SAVE_SECONDS]:.1f} s; " if save else ""
        owed = "" if evaluated else ", with the evaluation of that step"
        return f"interrupted by {source} after step {step}; {saved}the same command goes on from there{owed}"


def stopping() -> bool:
    """Whether a process of this run was asked to end, as far as this one has heard."""
    return PULSE.stopping
