"""The trainer: objectives ask for rows, the trainer runs the passes.

One optimizer step is: fetch `accumulation` micro-batches, agree on the count of every loss term over all ranks, then for
each micro-batch one forward per pass of the plan and one backward through all of them. The plan is the same on all ranks
and never looks at the data, so ranks cannot fall out of step.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from megaunigame.checkpoint.manager import CheckpointManager
from megaunigame.config import Recipe, fill, resolve_batch
from megaunigame.data.loading.bad_samples import BadSampleCounter
from megaunigame.data.loading.stream import MicroBatch, MicroBatches, micro_batch_loader
from megaunigame.data.sources.base import Stream
from megaunigame.data.sources.opening import open_stream
from megaunigame.engine.dry_run import checked_peak, dry_run
from megaunigame.engine.ds_config import complete_ds_config
from megaunigame.engine.memory_plan import describe
from megaunigame.engine.model_folder import model_folder
from megaunigame.engine.schedule import lr_factor
from megaunigame.engine.zero3 import Learner, build_learner
from megaunigame.errors import CheckpointError, ConfigError, DivergenceError
from megaunigame.evaluation.run import as_text, evaluation_file, run_evaluation, scalars
from megaunigame.evaluation.suites.base import Suite
from megaunigame.models.base import UnifiedModel
from megaunigame.monitoring import names
from megaunigame.monitoring.monitor import Monitor
from megaunigame.objectives.base import Stage
from megaunigame.objectives.building import build_objectives, build_plan
from megaunigame.parallel.world import World
from megaunigame.randomness import seed_micro_step
from megaunigame.registry import find, unknown
from megaunigame.step.inputs import AttackInputs, PassInputs, Taps
from megaunigame.step.losses import LossTerms
from megaunigame.step.micro import Step
from megaunigame.step.phases import DATA, MERGE, Phases
from megaunigame.step.requests import ATTACK, GENERATE, UNDERSTAND, attack_plan
from megaunigame.training.performance import Performance
from megaunigame.training.state import TrainState

log = logging.getLogger(__name__)


class Trainer:
    """Builds a run in reading order (objectives, data, engine, checkpoint) and carries it out."""

    micro_batches_of: ClassVar[type[MicroBatches]] = MicroBatches
    """Where the rows of a micro-step come from."""

    def __init__(self, recipe: Recipe, world: World, phases: Phases | None = None):
        """`phases`: who is told what a step is doing."""
        self.recipe, self.world = recipe, world
        self.phases = phases or Phases()
        self.folder = Path(recipe.output)

        # Everything that can be wrong without a model is checked before one is loaded.
        self.objectives = build_objectives(recipe)
        self.objective_of = {r.term: o for o in self.objectives for r in o.rows()}
        self.plan = build_plan(self.objectives)
        self.accumulation = resolve_batch(recipe.batch, self.plan.rows_per_micro_step(), world.size)
        self.ds_config = complete_ds_config(recipe, self.accumulation, world.size)
        self.suites = {label: _suite(label, settings) for label, settings in recipe.evaluation.suites.items()}
        self.checkpoints = CheckpointManager(self.folder, recipe.checkpoint.keep, world)
        self.resumed_from = self.checkpoints.find(recipe.checkpoint.resume)
        self.state = (
            TrainState.from_state_dict(self.checkpoints.train_state(self.resumed_from))
            if self.resumed_from
            else TrainState(weights=recipe.model.weights)
        )
        self._check_weights()
        self.streams = self.open_streams()
        self.bad_samples = BadSampleCounter(self.plan, recipe.loader.max_bad_fraction)
        if self.resumed_from:
            self.bad_samples.load_state_dict(self.state.bad_samples)

        family = find("models", recipe.model.family, UnifiedModel)
        with model_folder(family, recipe.model) as path:
            for objective in self.objectives:
                objective.check_family(family, recipe.model.family, path)
            self.taps = {name: self._taps(name) for name in self.plan.passes}
            self.terms = LossTerms(self.plan, [term for o in self.objectives for term in o.pass_terms()], world)
            placed = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, path=path))
            self.learner: Learner = build_learner(family, placed, self.plan, self.ds_config, world)
        if phases is not None:
            self.learner.measure(phases)
        self.performance = Performance(self.learner, world, recipe.engine.precision)
        self.processor = self.learner.module.processor
        stage = Stage(self.learner.module, self.learner.as_opponent, self.plan, world, recipe.seed, self.accumulation)
        for objective in self.objectives:
            objective.prepare(stage)
        if self.resumed_from:
            self.checkpoints.load(self.learner, self.resumed_from)
            for objective in self.objectives:
                objective.load(self.resumed_from)
        self.first_step = self.state.step
        self.micro_batches = self.micro_batches_of(
            self.plan,
            self.objective_of,
            self.streams,
            self.processor,
            self.accumulation,
            world.rank,
            world.size,
            recipe.seed,
            self.first_step,
        )
        self.signalled = False
        """This rank was asked to stop. Written by the signal handler only, at any moment."""
        self.stop_requested = False
        """All ranks have agreed to stop after this step. Written in `_agree` only: a rank must never leave alone."""

    def describe(self) -> str:
        """The start-up plan."""
        return describe(
            self.learner.module,
            self.plan,
            self._largest(),
            accumulation=self.accumulation,
            world_size=self.world.size,
            precision=self.recipe.engine.precision,
            steps=self.recipe.schedule.steps,
        )

    def dry_run(self) -> None:
        """Forward and backward of every pass on the largest legal rows; changes nothing.

        Raises CapacityError when a step of such rows would not fit into the memory of the GPU.
        """
        with checked_peak(self.learner, self.ds_config):
            self._rehearse()

    def _rehearse(self) -> None:
        largest = {name: inputs.to(self.world.device) for name, inputs in self._largest().items()}
        losses: list[Tensor] = []
        leaves: list[Tensor] = []
        if self.plan.of_pass(ATTACK):
            plan = attack_plan(self.plan.widest(GENERATE))
            texts = ["largest"] * plan.rows(UNDERSTAND)
            attack = AttackInputs(self.processor.largest(plan, GENERATE), self.processor.largest(plan, UNDERSTAND), texts)
            for objective in self.objectives:
                joined = objective.rehearse(attack, largest)
                losses += joined.losses
                leaves += joined.leaves
        dry_run(self.learner, largest, losses, leaves)

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
        last = (recipe.schedule.steps - first) * self.accumulation
        loader, on_gpu = recipe.loader, self.world.device.type == "cuda"
        micro_batches = iter(
            micro_batch_loader(self.micro_batches, 0, last, loader.workers, loader.prefetch, pin_memory=on_gpu)
        )
        saved = first if self.resumed_from is not None else None
        while self.state.step < recipe.schedule.steps and not self.stop_requested:
            metrics = self.train_step(micro_batches)
            monitor.log(self.state.step, metrics)
            monitor.panels(self.state.step, [panel for o in self.objectives for panel in o.panels()])
            step = self.state.step
            if step % recipe.checkpoint.every == 0:
                self.save()
                saved = step
            if recipe.evaluation.every and step % recipe.evaluation.every == 0 and step < recipe.schedule.steps:
                self._evaluate_into(monitor)
        if saved != self.state.step:
            self.save()
        if self.state.step == recipe.schedule.steps and not self._was_evaluated_at_the_end():
            self._evaluate_into(monitor)
        monitor.close()

    def train_step(self, micro_batches: Iterator[MicroBatch]) -> dict[str, float]:
        """One optimizer step; returns its metrics, equal on all ranks."""
        with self.performance.flops.counting():
            return self._train_step(micro_batches)

    def _train_step(self, micro_batches: Iterator[MicroBatch]) -> dict[str, float]:
        self.performance.begin()
        started = time.perf_counter()
        with self.phases(DATA):
            batches = [next(micro_batches) for _ in range(self.accumulation)]
        waited = time.perf_counter() - started
        lr = self.recipe.optimizer.lr * lr_factor(self.recipe.schedule, self.state.step)
        self.learner.set_lr(lr)
        attacks = [batch.attack for batch in batches if batch.attack is not None]
        step = Step(self.state.step, lr, [b.inputs for b in batches], [b.plan for b in batches], attacks)
        with self.phases(ATTACK):
            for objective in self.objectives:
                objective.before_learner(step)

        weights, counts = self.terms.weights(step), self.terms.counts(step)
        sums = torch.zeros_like(counts)
        row_losses: list[tuple[list[str], Tensor]] = []
        for micro, inputs_of in enumerate(step.inputs):
            for name, inputs in inputs_of.items():
                inputs_of[name] = inputs.to(self.world.device)
            with self.phases(ATTACK):
                extra = [o.before_micro_step(step, micro) for o in self.objectives]
            seed_micro_step(self.recipe.seed, self.state.step, micro, self.world.rank)
            term_sums = torch.zeros_like(counts)
            for pass_name in self.plan.passes:
                inputs = dataclasses.replace(inputs_of[pass_name], taps=self.taps[pass_name])
                with self.phases(pass_name):
                    output = self.learner.forward(pass_name, inputs)
                    term_sums = term_sums + self.terms.sums(pass_name, inputs, output)
                row_losses.append((inputs.keys, output.loss_sum.detach()))
                # An objective may put rows into the passes that are still to come.
                with self.phases(ATTACK):
                    extra += [o.after_pass(step, micro, inputs, output, pass_name) for o in self.objectives]
            sums += term_sums.detach()
            if micro == self.accumulation - 1:
                totals, counted = self._agree(sums, batches, row_losses)
            loss = (weights * term_sums / counts.clamp(min=1)).sum()
            self.learner.backward_and_step(sum((term for term in extra if term is not None), loss))

        grad_norm = self.learner.grad_norm()
        if not math.isfinite(grad_norm):
            raise DivergenceError(
                f"The gradient of step {self.state.step + 1} is not finite although its losses are; the update with it is lost "
                f"and nothing of it was saved. Lower optimizer.lr and start again: the run resumes from its newest checkpoint "
                f"in {self.folder / 'checkpoints'}."
            )
        step.losses = self.terms.means(totals, counts)
        with self.phases(MERGE):
            reported = [objective.after_learner(step) for objective in self.objectives]
        self.state.step += 1
        self.state.cursors = self.micro_batches.cursors(self.state.step - self.first_step)
        rows = sum(p.rows_per_micro_step() for p in step.plans)
        passes = len(self.plan.passes) * self.accumulation + step.passes
        metrics = self.terms.metrics(step.losses, weights) | {
            names.OPTIM_LR: lr,
            names.OPTIM_GRAD_NORM: grad_norm,
            **self.performance.metrics(rows, passes, counted.tolist()),
            names.DATA_WAIT_SECONDS: waited,
            names.DATA_BAD_SAMPLES: sum(self.bad_samples.bad.values()),
        }
        for more in reported:
            metrics |= more
        return metrics

    def save(self) -> None:
        """Write a checkpoint of the present step."""
        self.state.bad_samples = self.bad_samples.state_dict()
        others = [objective.save for objective in self.objectives]
        self.checkpoints.save(self.learner, self.state.state_dict(), self.state.step, others)

    def evaluate(self) -> dict[str, Any]:
        """Run the recipe's evaluation suites on the present weights; results land in the run folder and are returned."""
        return run_evaluation(self.learner.module, self.suites, self.world, self.state.step, self.folder)

    def _evaluate_into(self, monitor: Monitor) -> None:
        if self.suites:
            evaluation = self.evaluate()
            monitor.record(self.state.step, scalars(evaluation))
            monitor.say(f"evaluation after step {self.state.step}\n{as_text(evaluation)}")

    def _was_evaluated_at_the_end(self) -> bool:
        """Whether an earlier launch trained to the last step and evaluated it, so that this one has nothing to add."""
        here = self.first_step == self.state.step and evaluation_file(self.folder, self.state.step).exists()
        return self.world.all_gather_object(here)[0]  # rank 0 decides: ranks may see a shared folder at different ages

    def _agree(
        self, sums: Tensor, batches: list[MicroBatch], row_losses: list[tuple[list[str], Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Totals of this step over all ranks, before the update: the sum of each loss term, and what `Performance` counts.

        Also agrees on bad samples and on whether to stop, in the same collective.
        Raises DivergenceError on every rank when any loss of any rank is not finite.
        """
        for batch in batches:
            self.bad_samples.add(batch.plan, batch.bad)
        # float64, because token counts of a large step do not fit fp32 exactly.
        local = torch.tensor([*self.bad_samples.pending(), self.signalled], dtype=torch.float64).to(sums.device)
        parts = [sums.double(), local[:-1], self.performance.counts(), local[-1:]]
        totals = self.world.all_reduce_sum(torch.cat(parts)).cpu()
        terms = len(self.terms.names)
        counted = terms + len(local) - 1
        self.bad_samples.merge([int(x) for x in totals[terms:counted]])
        self.stop_requested = bool(totals[-1] > 0)
        if not bool(torch.isfinite(totals[:terms]).all()):
            bad = [k for keys, loss in row_losses for k, x in zip(keys, loss.tolist(), strict=True) if not math.isfinite(x)]
            everywhere = [
                f"rank {rank}: {', '.join(keys[:8])}" for rank, keys in enumerate(self.world.all_gather_object(bad)) if keys
            ]
            broken = [t for t, x in zip(self.terms.names, totals.tolist(), strict=False) if not math.isfinite(x)]
            raise DivergenceError(
                f"The loss of {', '.join(broken)} is not finite in step {self.state.step + 1}; nothing was updated with it. "
                f"Samples: {'; '.join(everywhere)}. Lower optimizer.lr or optimizer.clip and start again: the run resumes "
                f"from its newest checkpoint in {self.folder / 'checkpoints'}."
            )
        return totals[:terms], totals[counted:-1]

    def open_streams(self) -> dict[str, Stream]:
        """The streams that rows are drawn from, each at its cursor, or at its beginning."""
        for request in self.plan.requests:
            if request.stream is not None and request.stream not in self.recipe.data:
                raise ConfigError(f"Term {request.term}: " + unknown("stream", request.stream, sorted(self.recipe.data)))
        return {
            name: open_stream(name, self.recipe.data[name], self.recipe.seed, self.state.cursors.get(name))
            for name in self.plan.streams
        }

    def _check_weights(self) -> None:
        """What has learned from random weights must not go on as if it had not, nor the reverse."""
        if self.state.weights != self.recipe.model.weights:
            raise CheckpointError(
                f"{self.resumed_from} belongs to a run with model.weights={self.state.weights}, this one has "
                f"model.weights={self.recipe.model.weights}. Give another `output`, or type checkpoint.resume=never; or "
                f"model.weights={self.state.weights} to resume it."
            )

    def _taps(self, pass_name: str) -> Taps | None:
        """The attention that one objective asks a pass to measure."""
        asked = [taps for objective in self.objectives if (taps := objective.taps(pass_name)) is not None]
        if len(asked) > 1:
            raise ConfigError(f"Two objectives measure the attention of the {pass_name} pass. Remove one from `objectives`.")
        return asked[0] if asked else None

    def _largest(self) -> dict[str, PassInputs]:
        largest = {name: self.processor.largest(self.plan.widest(name), name) for name in self.plan.passes}
        return {name: dataclasses.replace(inputs, taps=self.taps[name]) for name, inputs in largest.items()}

    def _listen_for_signals(self) -> None:
        """A polite kill ends the run after the current step, with a checkpoint; the ranks agree on it in `_agree`."""

        def request_stop(signum: int, _frame: Any) -> None:
            log.warning("%s received: saving after this step, then stopping.", signal.Signals(signum).name)
            self.signalled = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, request_stop)


def _suite(label: str, settings: dict[str, Any]) -> Suite:
    settings = dict(settings or {})
    kind = find("evaluation.suites", settings.pop("suite", label), Suite)
    return kind(fill(kind.Config, settings, f"evaluation.suites.{label}"))
