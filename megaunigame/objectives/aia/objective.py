"""AIA: each task's cross-modal attention is pulled to targets, layer by layer (arXiv 2511.22663).

    L = L_NTP + lambda * mean over layers l and rows b of huber_{delta_l}(I_l,b - T_l)

I_l,b: share of the attention of layer l that the queries of row b give to its keys, averaged over heads before the Huber
function, so that single heads stay free. Understanding: from answers to the image; generation: from the image to the text.

No row and no pass is AIA's own: it measures what other objectives' rows attend to, in the passes they make.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megaunigame.attention.positions import measurable
from megaunigame.attention.targets import PASSES, Aim, find_targets
from megaunigame.data.decode import Sample
from megaunigame.errors import CheckpointError, ConfigError
from megaunigame.models.base import UnifiedModel
from megaunigame.monitoring import names
from megaunigame.objectives.aia.settings import Settings
from megaunigame.objectives.base import Objective, Stage
from megaunigame.registry import unknown
from megaunigame.step.inputs import AttentionShares, PassInputs, PassOutput, Taps
from megaunigame.step.losses import PassTerm
from megaunigame.step.micro import Step
from megaunigame.step.requests import RowRequest, StepPlan
from megaunigame.step.rows import Row

FILE = "aia.json"
WEIGHT = "weight"
"""Metric `attention/<pass>/weight`: the weight of the pull in the loss."""


class AIA(Objective):
    """One term per pass of the plan, over the rows of that pass."""

    Config = Settings

    def __init__(self, config: Settings):
        super().__init__(config)
        config.check()
        self.weights = config.given_weights
        """Pass -> lambda; a pass that is still to be measured is missing."""
        self.seen: dict[str, list[float]] = {}
        """Pass -> sums of its loss and of its pull, and steps, while its weight is measured."""

    def rows(self) -> list[RowRequest]:
        return []

    def row(self, request: RowRequest, sample: Sample, rng: np.random.Generator) -> Row | None:
        raise RuntimeError("AIA asks for no rows.")

    # Before the first step

    def check_plan(self, plan: StepPlan) -> None:
        for term in self.config.terms:
            if term not in plan.terms:
                raise ConfigError("objectives.aia.terms: " + unknown("loss term", term, list(plan.terms)))
        wanted = self.config.terms or plan.terms
        self.plan, self.passes = plan, [p for p in plan.passes if any(r.term in wanted for r in plan.of_pass(p))]
        self.row_terms = [plan.terms.index(term) for term in wanted]

    def check_family(self, family: type[UnifiedModel], name: str, path: str) -> None:
        c, depth = self.config, family.language_layers(path)
        if depth == 0:
            raise ConfigError(
                f"The family {name!r} does not measure its attention, which the objective aia needs. Leave it out."
            )
        for layer in c.layers:
            if not 0 <= layer < depth:
                raise ConfigError(f"objectives.aia.layers: {layer} is no layer; this model has 0 to {depth - 1}.")
        self.layers = tuple(sorted(c.layers)) or tuple(range(depth))
        targets = find_targets(c.targets, depth, c.compat)
        self.passes = [p for p in self.passes if p in targets]
        if not self.passes:
            raise ConfigError(
                f"objectives.aia.targets={c.targets} has targets for {', '.join(targets)}, and no such pass is made. Add rows "
                f"of another objective, or give targets for {' or '.join(PASSES)}."
            )
        self.aims = {p: [targets[p][layer] for layer in self.layers] for p in self.passes}
        self._taps = Taps(self.layers, c.queries, c.exclude_bos, c.compat)

    def prepare(self, stage: Stage) -> None:
        self.world = stage.world
        stage.model.install_taps()
        self._forget()

    def taps(self, pass_name: str) -> Taps | None:
        return self._taps if pass_name in self.passes else None

    # The step

    def pass_terms(self) -> list[Pull]:
        return [Pull(self, p) for p in self.passes]

    def weight(self, pass_name: str, step: Step) -> float:
        """Lambda of a pass in this step; 0 while it is measured."""
        warm = min(1.0, (step.number + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        return warm * self.weights.get(pass_name, 0.0)

    def counts(self, pass_name: str, inputs: PassInputs) -> Tensor:
        """(B,) bool: rows of the chosen terms that can be measured."""
        ours = torch.stack([inputs.terms == term for term in self.row_terms]).any(0)
        return ours & measurable(pass_name, inputs, self._taps)

    def note(self, pass_name: str, output: AttentionShares, counted: Tensor) -> None:
        """Add the measurements of one pass to those of this step."""
        shares = output.keys.detach()
        seen = torch.stack([*shares, output.first.detach().mean(0), torch.ones_like(shares[0])])
        self.measured[pass_name] += (seen * counted).sum(1)

    def after_learner(self, step: Step) -> dict[str, float]:
        totals = self.world.all_reduce_sum(torch.stack([self.measured[p] for p in self.passes])).tolist()
        self._forget()
        metrics: dict[str, float] = {}
        for term, total in zip(self.pass_terms(), totals, strict=True):
            metrics |= self._measurements(term, total) | {
                names.attention(term.pass_name, WEIGHT): self.weight(term.pass_name, step)
            }
            if term.pass_name not in self.weights:
                self._calibrate(term, step)
        return metrics

    def _forget(self) -> None:
        self.measured = {p: torch.zeros(len(self.layers) + 2, device=self.world.device) for p in self.passes}
        """Pass -> sums over this rank's counted rows: share by layer, share of the first token, 1."""

    def _measurements(self, term: PassTerm, total: list[float]) -> dict[str, float]:
        """Metrics of one pass from sums over all ranks; none but the count when no row was measured."""
        *sums, first, rows = total
        metrics = {names.attention(term.pass_name, names.ATTENTION_COUNTED): rows}
        if not rows:
            return metrics
        aims = self.aims[term.pass_name]
        for layer, share, aim in zip(self.layers, sums, aims, strict=True):
            metrics[names.attention(term.pass_name, names.ATTENTION_LAYER, layer)] = share / rows
            metrics[names.attention(term.pass_name, names.ATTENTION_TARGET, layer)] = aim.target
        distance = sum(abs(share / rows - aim.target) for share, aim in zip(sums, aims, strict=True)) / len(aims)
        metrics[names.attention(term.pass_name, names.ATTENTION_DISTANCE)] = distance
        metrics[names.attention(term.pass_name, names.ATTENTION_FIRST)] = first / rows
        return metrics

    def _calibrate(self, term: PassTerm, step: Step) -> None:
        """One more step towards lambda = loss of the pass / (ratio * pull), both means over all ranks."""
        requests = [r for r in self.plan.of_pass(term.pass_name) if r.term in step.losses]
        if term.term not in step.losses or not requests:
            return
        loss = sum(r.weight * step.losses[r.term] for r in requests)
        sums = self.seen.setdefault(term.pass_name, [0.0, 0.0, 0])
        sums[:] = [sums[0] + loss, sums[1] + step.losses[term.term], sums[2] + 1]
        if sums[2] >= self.config.calibration_steps and sums[1] > 0:
            self.weights[term.pass_name] = sums[0] / (self.config.ratio * sums[1])

    # Checkpoints

    def save(self, folder: Path) -> None:
        if self.world.is_main:
            (folder / FILE).write_text(json.dumps({"weights": self.weights, "seen": self.seen}))

    def load(self, folder: Path) -> None:
        if set(self.config.given_weights) >= set(self.passes):
            return  # the recipe's weights hold
        if not (folder / FILE).is_file():
            raise CheckpointError(
                f"{folder} holds no measured weights of AIA: that run had no objectives.aia. Give another `output`, or type "
                "objectives.aia.preset=code."
            )
        state = json.loads((folder / FILE).read_text())
        self.weights, self.seen = state["weights"] | self.config.given_weights, state["seen"]


class Pull(PassTerm):
    """The term of one pass."""

    def __init__(self, objective: AIA, pass_name: str):
        super().__init__(f"aia_{pass_name}", pass_name)
        self.objective = objective

    def weight(self, step: Step) -> float:
        return self.objective.weight(self.pass_name, step)

    def counted(self, inputs: PassInputs) -> Tensor:
        return self.objective.counts(self.pass_name, inputs)

    def losses(self, inputs: PassInputs, output: PassOutput) -> Tensor:
        assert output.attention is not None
        counted = self.counted(inputs)
        self.objective.note(self.pass_name, output.attention, counted)
        return torch.where(counted, pull(output.attention.keys, self.objective.aims[self.pass_name]), 0.0)


def pull(shares: Tensor, aims: list[Aim]) -> Tensor:
    """Shares (L, B) and one aim per layer -> (B,): mean over layers of huber_delta(share - target) (eq. 3).

    huber_d(x) = x^2 / 2 where |x| <= d, else d |x| - d^2 / 2.
    """
    given = torch.tensor([(aim.target, aim.delta) for aim in aims], dtype=shares.dtype)
    targets, deltas = given.to(shares.device, non_blocking=True).unsqueeze(1).unbind(2)
    distance = (shares - targets).abs()
    return torch.where(distance <= deltas, distance.square() / 2, deltas * (distance - deltas / 2)).mean(0)
