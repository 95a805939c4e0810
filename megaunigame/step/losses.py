"""The loss of a step: terms of rows, and terms that objectives add over existing rows.

    L = sum over terms t of weight_t * (sum over all ranks and micro-steps of t's losses) / (all-ranks count of t)

Every term is its sum over valid positions (or rows) divided by its count over all ranks: never a mean of means.

Ranks that share their rows (N of them) all add up the losses of these rows, and all count their positions: sums and counts are
N times those of the rows, which cancels. What a rank adds to the loss of the step is then one N-th of the loss of its rows, and
the gradient of the step, which is the sum over all ranks, is that of one process.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.monitoring import names
from megaunigame.parallel.ranks import Ranks
from megaunigame.step.inputs import PassInputs, PassOutput
from megaunigame.step.micro import Step
from megaunigame.step.requests import StepPlan


class PassTerm(ABC):
    """A loss term over rows of other terms: it adds a loss to a pass, never a row and never a pass."""

    def __init__(self, term: str, pass_name: str):
        """`term`: name, unique among all terms; also the metric name `loss/<term>`."""
        self.term, self.pass_name = term, pass_name

    @abstractmethod
    def weight(self, step: Step) -> float:
        """Weight in this step, the same on all ranks."""

    def meant(self, inputs: PassInputs) -> Tensor:
        """(B,) bool: rows of the pass that it is about, before it looks whether they can be counted."""
        return inputs.counts > 0

    @abstractmethod
    def counted(self, inputs: PassInputs) -> Tensor:
        """(B,) bool: rows of the pass over which the term is a mean."""

    @abstractmethod
    def losses(self, inputs: PassInputs, output: PassOutput) -> Tensor:
        """(B,) float32: the loss of every counted row, 0 elsewhere."""


class LossTerms:
    """Terms in a fixed order: those of the plan, those added over its rows, those of single micro-steps."""

    def __init__(self, plan: StepPlan, added: Sequence[PassTerm], joined: Sequence[str], world: Ranks, shared_by: int = 1):
        """`joined`: names of losses in `MicroStep.losses`, each one this data rank's share of the loss of the step.
        `shared_by`: ranks that share their rows."""
        self.plan, self.world = plan, world
        self.added, self.joined, self.shared_by = added, tuple(joined), shared_by
        self.names = (*plan.terms, *(term.term for term in added), *joined)
        """(T,)"""

    def own_weights(self, step: Step) -> dict[str, float]:
        """Term -> its weight without the factors of the step."""
        of_rows = [request.weight for request in self.plan.requests if not request.aside]
        given = [*of_rows, *(term.weight(step) for term in self.added), *(1.0 for _ in self.joined)]
        return dict(zip(self.names, given, strict=True))

    def weights(self, step: Step) -> Tensor:
        """(T,) float32."""
        weighted = [weight * step.factors.get(name, 1.0) for name, weight in self.own_weights(step).items()]
        return torch.tensor(weighted, device=self.world.device)

    def counts(self, step: Step) -> Tensor:
        """(T,) float32: loss positions of each term in this optimizer step, over all ranks and micro-steps."""
        counts = torch.zeros(len(self.names))
        for micro in step.micro_steps:
            for inputs in micro.inputs.values():
                counts.index_add_(0, inputs.terms.cpu(), inputs.counts.cpu())
            for index, term in enumerate(self.added, start=len(self.plan.terms)):
                counts[index] += term.counted(micro.inputs[term.pass_name]).sum()
        counts = self.world.all_reduce_sum(counts.to(self.world.device))
        first = len(self.names) - len(self.joined)
        counts[first:] = self.shared_by  # these losses are divided already, but for that
        return counts

    def sums(self, inputs: PassInputs, output: PassOutput) -> Tensor:
        """(T,) float32, differentiable: what one pass adds to each term."""
        sums = output.loss_sum.new_zeros(len(self.names)).index_add(0, inputs.terms, output.loss_sum)
        for index, term in enumerate(self.added, start=len(self.plan.terms)):
            if term.pass_name == inputs.pass_name:
                added = term.losses(inputs, output).sum().unsqueeze(0)
                sums = sums + F.pad(added, (index, len(self.names) - index - 1))  # an index would be copied to the device
        return sums

    def joined_sums(self, losses: dict[str, Tensor], like: Tensor) -> Tensor:
        """(T,) float32, differentiable: losses that players put into a micro-step, by the names in `joined`; `like`: (T,)."""
        if unknown := losses.keys() - set(self.joined):
            raise ValueError(
                f"MicroStep.losses has {sorted(unknown)[0]!r}, which no player names in its `losses`: {self.joined}."
            )
        sums = torch.zeros_like(like)
        for index, name in enumerate(self.joined, start=len(self.names) - len(self.joined)):
            if name in losses:
                sums = sums + F.pad(losses[name].float().unsqueeze(0), (index, len(self.names) - index - 1))
        return sums

    def means(self, totals: Tensor, counts: Tensor) -> dict[str, float]:
        """Term -> mean loss, from its sum over all ranks; without terms that have no position in this step."""
        pairs = zip(self.names, totals.tolist(), counts.tolist(), strict=True)
        return {name: total / count for name, total, count in pairs if count > 0}

    def not_finite(self, totals: Tensor) -> dict[str, float]:
        """Term -> its sum over all ranks, of terms whose sum is not finite."""
        return {name: total for name, total in zip(self.names, totals.tolist(), strict=True) if not math.isfinite(total)}

    def metrics(self, means: dict[str, float], weights: Tensor) -> dict[str, float]:
        """The means by their metric names, and their weighted sum."""
        weight = dict(zip(self.names, weights.tolist(), strict=True))
        losses = {names.loss(name): mean for name, mean in means.items()}
        return {**losses, names.LOSS_TOTAL: sum(weight[name] * mean for name, mean in means.items())}
