"""The plain reference with the recipe's `weights`, and with the gradients of single terms measured by plain autograd."""

from __future__ import annotations

import itertools
import math

import torch

from megaunigame.randomness import derive
from megaunigame.step.inputs import PassInputs, take_rows
from megaunigame.training.gradient_report import PURPOSE
from tests.multi_process.plain_reference import PlainReference


class BalanceReference(PlainReference):
    """Factors as a textbook would write them: linear ways by hand, equal norms from whole gradients of one micro-step."""

    def __init__(self, *given):
        super().__init__(*given)
        self.equal: dict[str, float] = {}
        self.measured: dict[str, float] = {}
        """Metric -> value of the last step; empty: nothing was measured in it."""

    def factors(self) -> dict[str, float]:
        self.measured = {}
        if self.step_number % self.recipe.monitor.gradients == 0:
            self._measure()
        return {term: self._factor_of(term) for term in self.plan.terms}

    def _factor_of(self, term: str) -> float:
        weight = self.recipe.weights.get(term)
        if weight is None:
            return 1.0
        way = min(1.0, self.step_number / weight.steps) if weight.steps else 1.0
        return (weight.start * (1 - way) + weight.end * way) * self.equal.get(term, 1.0)

    def _measure(self) -> None:
        layers = self.model.language_model.layers
        parameters = [p for p in layers[len(layers) // 2].parameters() if p.requires_grad]
        gradients = {}
        for place, term in enumerate(self.plan.terms):
            total, count = torch.zeros(()), 0.0
            for rank, _, inputs in (batch for batch in self.batches() if batch[1] == 0):
                rows = take_rows(*self._rows_of(term, inputs))
                torch.manual_seed(derive(self.recipe.seed, self.step_number, place, rank, PURPOSE))
                total = total + self.model(rows).loss_sum.sum()
                count += float(rows.counts.sum())
            if count:
                found = torch.autograd.grad(total / count, parameters, allow_unused=True)
                parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
                gradients[term] = torch.cat([part.flatten() for part in parts])
        norms = {term: float(gradient.norm()) for term, gradient in gradients.items()}
        self.measured = {f"gradient/norm/{term}": norm for term, norm in norms.items()}
        for (a, first), (b, second) in itertools.combinations(gradients.items(), 2):
            self.measured[f"gradient/cosine/{a}/{b}"] = float(first @ second / first.norm() / second.norm())
        weights = {r.term: r.weight for r in self.plan.requests}
        for term, weight in self.recipe.weights.items():
            if weight.kind == "auto" and term in norms:
                found = weights[weight.like] * norms[weight.like] / (weights[term] * norms[term])
                self.equal[term] = math.sqrt(self.equal[term] * found) if term in self.equal else found

    def _rows_of(self, term: str, inputs: dict[str, PassInputs]) -> tuple[PassInputs, slice]:
        request = next(r for r in self.plan.requests if r.term == term)
        return inputs[request.pass_name], self.plan.rows_at(request.pass_name, term)
