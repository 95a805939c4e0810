"""AIA in the step: the attention loss of each pass, its weight, and the metrics."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from torch import Tensor

from megaunigame.attention.positions import measurable
from megaunigame.attention.targets import Target
from megaunigame.errors import CheckpointError, ModelError
from megaunigame.monitoring import names
from megaunigame.objectives.aia.measurement import Measurement
from megaunigame.objectives.aia.settings import Settings
from megaunigame.objectives.player import Context, Player
from megaunigame.step.inputs import PassInputs, PassOutput, Taps
from megaunigame.step.losses import PassTerm
from megaunigame.step.micro import Step
from megaunigame.storage.json_files import read_object
from megaunigame.storage.pending import PendingFile

log = logging.getLogger(__name__)

FILE = "aia.json"
WEIGHT = "weight"
"""Metric `attention/<pass>/weight`: lambda in this step."""


class AttentionPlayer(Player):
    """Adds one attention loss per measured pass."""

    terms: list[AttentionLoss]

    def __init__(self, config: Settings, measurement: Measurement, context: Context):
        self.config, self.measurement, self.data_ranks = config, measurement, context.data_ranks
        self.terms = [AttentionLoss(config, measurement, name, context) for name in measurement.passes]
        left_out = [term for number, term in enumerate(context.plan.terms) if number not in measurement.row_terms]
        if left_out and not config.terms and context.data_ranks.is_main:
            log.warning(
                "objectives.aia leaves out the rows of %s: they draw from a source picture, which is not among the keys, or a "
                "player fills them. Name them in objectives.aia.terms to include them.",
                ", ".join(left_out),
            )

    def taps(self, pass_name: str) -> Taps | None:
        return self.measurement.taps if pass_name in self.measurement.passes else None

    def after_learner(self, step: Step) -> dict[str, float]:
        totals = self.data_ranks.all_reduce_sum(torch.stack([term.taken() for term in self.terms])).tolist()
        metrics: dict[str, float] = {}
        for term, total in zip(self.terms, totals, strict=True):
            metrics |= term.metrics(total) | {names.attention(term.pass_name, WEIGHT): term.weight(step)}
            term.calibrate(step)
        return metrics

    def pending(self) -> list[PendingFile]:
        if not self.data_ranks.is_main:
            return []
        given = self.config.given_weights  # not a measurement: another recipe may measure
        weights = {t.pass_name: t.full_weight for t in self.terms if t.full_weight is not None and t.pass_name not in given}
        seen = {t.pass_name: t.seen for t in self.terms if t.seen[2]}
        return [PendingFile(FILE, content=json.dumps({"weights": weights, "seen": seen}).encode())]

    @property
    def keeps_state(self) -> bool:
        """Whether a weight is measured; the others are in the recipe."""
        return not set(self.config.given_weights) >= set(self.measurement.passes)

    def load(self, folder: Path) -> None:
        if not self.keeps_state:
            return
        if not (folder / FILE).is_file():
            raise CheckpointError(
                f"{folder} holds no measured weights of AIA: that run had no objectives.aia. Give another `output`, or type "
                "objectives.aia.preset=code."
            )
        state = read_object(folder / FILE, "the state of AIA", CheckpointError, "Resume from an older checkpoint.")
        for term in self.terms:
            term.full_weight = self.config.given_weights.get(term.pass_name, state["weights"].get(term.pass_name))
            term.seen = state["seen"].get(term.pass_name, term.seen)


class AttentionLoss(PassTerm):
    """Distance of the attention of one pass from its targets."""

    def __init__(self, config: Settings, measurement: Measurement, pass_name: str, context: Context):
        super().__init__(f"aia_{pass_name}", pass_name)
        self.config, self.measurement, self.plan = config, measurement, context.plan
        self.layer_targets = measurement.layer_targets[pass_name]
        self.full_weight = config.given_weights.get(pass_name)
        """Lambda after warm-up; None: still to be measured."""
        self.seen = [0.0, 0.0, 0]
        """While lambda is measured: sum of the pass's loss, sum of this loss, number of steps."""
        self.sums = torch.zeros(len(measurement.taps.layers) + 2, device=context.data_ranks.device)
        """Sums over this rank's counted rows of this step: share by layer, share of the first token, 1."""

    def weight(self, step: Step) -> float:
        """Lambda in this step; 0 while it is measured."""
        warm = min(1.0, (step.number + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        return warm * (self.full_weight or 0.0)

    def meant(self, inputs: PassInputs) -> Tensor:
        """(B,) bool: rows of the chosen terms."""
        return torch.stack([inputs.terms == term for term in self.measurement.row_terms]).any(0) & (inputs.counts > 0)

    def counted(self, inputs: PassInputs) -> Tensor:
        """(B,) bool: rows of the chosen terms that can be measured."""
        ours = torch.stack([inputs.terms == term for term in self.measurement.row_terms]).any(0)
        return ours & measurable(inputs, self.measurement.taps)

    def losses(self, inputs: PassInputs, output: PassOutput) -> Tensor:
        if output.attention is None:
            raise ModelError(
                f"The {self.pass_name} pass of this family does not measure its attention, which objectives.aia needs."
            )
        counted = self.counted(inputs)
        shares = output.attention.keys.detach()
        seen = torch.stack([*shares, output.attention.first.detach().mean(0), torch.ones_like(shares[0])])
        self.sums += (seen * counted).sum(1)
        return torch.where(counted, attention_loss(output.attention.keys, self.layer_targets), 0.0)

    def taken(self) -> Tensor:
        """Return the sums of this step and reset them."""
        sums, self.sums = self.sums, torch.zeros_like(self.sums)
        return sums

    def metrics(self, total: list[float]) -> dict[str, float]:
        """From sums over all ranks; only the count when no row was measured."""
        *sums, first, rows = total
        metrics = {names.attention(self.pass_name, names.ATTENTION_COUNTED): rows}
        if not rows:
            return metrics
        for layer, share, each in zip(self.measurement.taps.layers, sums, self.layer_targets, strict=True):
            metrics[names.attention(self.pass_name, names.ATTENTION_LAYER, layer)] = share / rows
            metrics[names.attention(self.pass_name, names.ATTENTION_TARGET, layer)] = each.target
        distances = [abs(share / rows - each.target) for share, each in zip(sums, self.layer_targets, strict=True)]
        metrics[names.attention(self.pass_name, names.ATTENTION_DISTANCE)] = sum(distances) / len(distances)
        metrics[names.attention(self.pass_name, names.ATTENTION_FIRST)] = first / rows
        return metrics

    def calibrate(self, step: Step) -> None:
        """While lambda is unknown: average towards loss of the measured rows / (ratio * this loss), means over all ranks."""
        measured = {self.plan.terms[number] for number in self.measurement.row_terms}
        requests = [r for r in self.plan.of_pass(self.pass_name) if r.term in step.losses and r.term in measured]
        if self.full_weight is not None or not step.updated or self.term not in step.losses or not requests:
            return
        loss = sum(r.weight * step.factors.get(r.term, 1.0) * step.losses[r.term] for r in requests)
        self.seen = [self.seen[0] + loss, self.seen[1] + step.losses[self.term], self.seen[2] + 1]
        if self.seen[2] >= self.config.calibration_steps and self.seen[1] > 0:
            self.full_weight = self.seen[0] / (self.config.ratio * self.seen[1])


def attention_loss(shares: Tensor, layer_targets: list[Target]) -> Tensor:
    """Shares (L, B) and one target per layer -> (B,): mean over layers of huber_delta(share - target) (eq. 3).

    huber_d(x) = x^2 / 2 where |x| <= d, else d |x| - d^2 / 2.
    """
    given = torch.tensor([(each.target, each.delta) for each in layer_targets], dtype=shares.dtype)
    targets, deltas = given.to(shares.device, non_blocking=True).unsqueeze(1).unbind(2)
    distance = (shares - targets).abs()
    return torch.where(distance <= deltas, distance.square() / 2, deltas * (distance - deltas / 2)).mean(0)
