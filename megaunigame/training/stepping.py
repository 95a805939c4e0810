"""One optimizer step: fetch its micro-batches, run the passes, agree with all ranks, report."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from megaunigame.data.loading.bad_samples import BadSample, BadSampleCounter
from megaunigame.data.loading.stream import MicroBatch
from megaunigame.engine.schedule import lr_factor
from megaunigame.engine.zero3 import Learner
from megaunigame.monitoring import names
from megaunigame.objectives.building import taps_of
from megaunigame.objectives.player import Player
from megaunigame.parallel.interruption import Interruption
from megaunigame.parallel.pulse import AGREE, PULSE
from megaunigame.parallel.together import finishing
from megaunigame.randomness import seed_micro_step
from megaunigame.step.losses import LossTerms
from megaunigame.step.micro import MicroStep, Step
from megaunigame.step.phases import DATA, MERGE, PLAYERS, Phases
from megaunigame.training.assembly import Assembly
from megaunigame.training.divergence import Divergence
from megaunigame.training.fetching import Fetcher
from megaunigame.training.gradient_report import GradientReport
from megaunigame.training.lockstep import LockstepGuard
from megaunigame.training.performance import Performance
from megaunigame.training.quarantine import Quarantine
from megaunigame.training.refused_step import RefusedSteps
from megaunigame.training.row_counts import RowCounter
from megaunigame.training.term_weights import LEAST, MOST

log = logging.getLogger(__name__)


@dataclass
class StepData:
    """The data of one step of this rank."""

    step: Step
    bad: list[list[BadSample]]
    """Replaced samples, per micro-step."""
    waited: float
    """Seconds waited for the data."""
    row_losses: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    """(micro-step, pass) -> (B,) loss sums of its rows, as they become known."""


class Stepper:
    """Makes optimizer steps. Every rank makes the same calls in the same order, regardless of its data."""

    def __init__(
        self,
        parts: Assembly,
        learner: Learner,
        players: Sequence[Player],
        bad_samples: BadSampleCounter,
        rows: RowCounter,
        phases: Phases,
        stop: Interruption,
    ):
        self.recipe, self.world, self.plan, self.folder = parts.recipe, parts.mesh.world, parts.plan, parts.folder
        self.data_ranks, self.accumulation = parts.mesh.data, parts.accumulation
        self.learner, self.players, self.phases = learner, players, phases
        self.bad_samples, self.rows = bad_samples, rows
        self.lockstep = LockstepGuard(self.world, parts.mesh.sequence)
        quarantine = Quarantine(self.folder, self.world, fresh=parts.state.step == 0)
        self.complete_save = parts.checkpoints.wait
        """Before an error that all ranks raise: a save that is being written is of a step that was good."""
        self.fetcher = Fetcher(self.world, quarantine, self.complete_save)
        bad_samples.elsewhere = quarantine.last
        self.taps = {name: taps_of(players, name) for name in self.plan.passes}
        added = [term for player in players for term in player.terms]
        joined = [name for player in players for name in player.losses]
        self.terms = LossTerms(self.plan, added, joined, self.world, parts.mesh.sequence.size)
        self.factors = parts.factors
        for term in self.recipe.given_weights:
            self.factors.require(term, self.terms.names)  # announced, but without a loss with these settings
        monitor = self.recipe.monitor
        self.gradients_every = monitor.gradients
        self.gradients: GradientReport | None = None
        if monitor.gradients:
            self.gradients = GradientReport(learner, self.plan, parts.mesh, monitor.gradient_layers, self.recipe.seed)
        self.divergence = Divergence(self.recipe.divergence, self.terms.joined)
        self.refused = RefusedSteps(parts, learner, self.divergence)
        self.performance = Performance(learner, self.world, self.recipe.engine.precision)
        self.limited: set[str] = set()
        """Terms whose factor was at a limit when it was last measured."""
        self.stop = stop

    def step(self, number: int, micro_batches: Iterator[MicroBatch]) -> dict[str, float]:
        """Optimizer step `number` (0 is the first of the run); returns its metrics, equal on all ranks."""
        with self.performance.flops.counting():
            self.performance.begin()
            data = self._fetch(number, micro_batches)
            step = data.step
            with PULSE.phase(AGREE, in_step=True), finishing(self.complete_save):
                self.lockstep.check(step)
            self.learner.set_lr(step.lr)
            with self.phases(PLAYERS):
                for player in self.players:
                    player.before_learner(step)
            gradients = self._measure_gradients(step)
            for name, factor in zip(self.terms.names, self.factors.factors(self.terms.names, number), strict=True):
                step.factors[name] = step.factors.get(name, 1.0) * factor
            weights, counts = self.terms.weights(step), self.terms.counts(step)
            counted = self._run(data, weights, counts)
            if not step.updated:
                self.refused.handle(step, data.row_losses)
            self.refused.warn(step)
            with self.phases(MERGE):
                reported = [player.after_learner(step) for player in self.players]
            reported += [self.factors.metrics(number), gradients]
            return self._report(data, counted, weights, reported)

    def _measure_gradients(self, step: Step) -> dict[str, float]:
        """Every n-th step: the gradients of the terms, and the factors that follow from them."""
        if self.gradients is None or step.number % self.gradients_every:
            return {}
        metrics = self.gradients.measure(step)
        limited = set(self.factors.equalize(self.gradients.norms, self.terms.own_weights(step)))
        if self.world.is_main and limited - self.limited:
            log.warning(
                "The factor of weights.%s.kind=auto is at its limit, %g or %g.", min(limited - self.limited), LEAST, MOST
            )
        self.limited = limited
        return metrics

    def _fetch(self, number: int, micro_batches: Iterator[MicroBatch]) -> StepData:
        with self.phases(DATA):
            batches, waited = self.fetcher.fetch(micro_batches, self.accumulation)
        with PULSE.phase(AGREE, in_step=True):
            self.fetcher.agree(number + 1, batches)
        lr = self.recipe.optimizer.lr * lr_factor(self.recipe.schedule, number)
        micro_steps = [MicroStep(n, b.plan, b.inputs, b.aside, b.dealing) for n, b in enumerate(batches)]
        step = Step(number, lr, micro_steps, self.recipe.optimizer.lr)
        return StepData(step, [b.bad for b in batches], waited)

    def _run(self, data: StepData, weights: Tensor, counts: Tensor) -> list[float]:
        """All passes and backwards, and the update unless it is refused; returns sums of `Performance.counts`, all ranks."""
        step, sums = data.step, torch.zeros_like(counts)
        *_, last = self.plan.passes
        for micro in step.micro_steps:
            self._begin(step, micro)
            for name in self.plan.passes:
                term_sums = self._forward(data, micro, name)
                if name == last:
                    term_sums = term_sums + self.terms.joined_sums(micro.losses, sums)
                sums += term_sums.detach()
                if name == last and micro.number == self.accumulation - 1:
                    totals, counted = self._agree(data, sums)
                self.learner.backward((weights * term_sums / counts.clamp(min=1)).sum())
        joined = {name for micro in step.micro_steps for name in micro.losses}
        means = self.terms.means(totals, counts)
        step.losses = {name: x for name, x in means.items() if name not in self.terms.joined or name in joined}
        # A term without positions has no mean; its rows can break the gradient all the same.
        judged = self.terms.not_finite(totals) | step.losses
        step.updated = self.learner.update(lambda norm: self.divergence.accepts(step.number, judged, norm))
        self.learner.average(step.number + 1)
        return counted

    def _begin(self, step: Step, micro: MicroStep) -> None:
        """What comes before the passes of one micro-step."""
        for name, inputs in micro.inputs.items():
            micro.inputs[name] = inputs.to(self.world.device)
        with self.phases(PLAYERS):
            for player in self.players:
                player.before_micro_step(step, micro)
        seed_micro_step(self.recipe.seed, step.number, micro.number, self.data_ranks.rank)

    def _forward(self, data: StepData, micro: MicroStep, name: str) -> Tensor:
        """(T,) what one pass adds to each term. Notes the loss of each row in `data`."""
        inputs = dataclasses.replace(micro.inputs[name], taps=self.taps[name])
        if inputs.pass_name != name:
            raise TypeError(f"The processor of the family made {type(inputs).__name__} for the {name} pass.")
        with self.phases(name):
            output = self.learner.forward(inputs)
            term_sums = self.terms.sums(inputs, output)
        data.row_losses[micro.number, name] = output.loss_sum.detach()
        # A player may put rows into later passes.
        with self.phases(PLAYERS):
            for player in self.players:
                player.after_pass(data.step, micro, output)
        return term_sums

    def _agree(self, data: StepData, sums: Tensor) -> tuple[Tensor, list[float]]:
        """One collective before the update: loss terms, bad samples, rows, tokens, and whether to stop.

        Returns sums over all ranks: of each loss term, (T,) float64, and of `Performance.counts`.
        """
        for micro, bad in zip(data.step.micro_steps, data.bad, strict=True):
            self.bad_samples.add(micro.plan, bad)
        # float64, because token counts of a large step do not fit fp32 exactly.
        local = torch.tensor([*self.bad_samples.pending(), self.stop.received is not None], dtype=torch.float64).to(sums.device)
        # Of ranks that share their rows one counts what they have read. They all add to the losses, and to the positions.
        once = float(self.data_ranks.writes)
        rows = once * self.rows.pending(data.step, sums.device)
        parts = [sums.double(), once * local[:-1], rows, self.performance.counts(once), local[-1:]]
        totals = self.world.all_reduce_sum(torch.cat(parts)).cpu()
        terms = len(self.terms.names)
        first_row = terms + len(local) - 1
        counted = first_row + len(rows)
        with finishing(self.complete_save):
            self.bad_samples.merge([int(x) for x in totals[terms:first_row]])
            self.rows.merge([int(x) for x in totals[first_row:counted]])
        self.stop.agreed = bool(totals[-1] > 0)
        return totals[:terms], totals[counted:-1].tolist()

    def _report(
        self, data: StepData, counted: list[float], weights: Tensor, reported: Sequence[dict[str, float]]
    ) -> dict[str, float]:
        """The metrics of the step."""
        step = data.step
        rows = self.data_ranks.size * sum(micro.plan.rows_per_micro_step() for micro in step.micro_steps)
        passes = len(self.plan.passes) * self.accumulation + step.passes
        metrics: dict[str, Any] = self.terms.metrics(step.losses, weights) | {
            names.OPTIM_LR: step.lr,
            names.OPTIM_GRAD_NORM: self.learner.grad_norm(),
            names.OPTIM_SKIPPED: self.divergence.skipped,
            **self.performance.metrics(rows, passes, counted),
            **self.rows.metrics(),
            names.DATA_WAIT_SECONDS: data.waited,
            names.DATA_BAD_SAMPLES: sum(self.bad_samples.bad.values()),
        }
        for more in reported:
            metrics |= more
        return metrics
