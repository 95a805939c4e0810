"""Which loss terms pull the model where: norm and pairwise cosine of each term's gradient, on some layers.

The gradient of a term is that of its mean loss, with weight 1, over the rows of one micro-step of all ranks. It is computed
apart from the training: one more forward and backward over the term's rows, as a player makes them (no dropout; nothing of
the engine's gradients changes), before the passes of the step. Terms whose rows a player fills are left out: some are filled
during the passes only. So are losses that players add over rows of others.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from megaunigame.engine.zero3 import Learner
from megaunigame.errors import ConfigError
from megaunigame.monitoring import names
from megaunigame.parallel.mesh import Mesh
from megaunigame.randomness import derive
from megaunigame.step.inputs import take_rows
from megaunigame.step.micro import MicroStep, Step
from megaunigame.step.requests import StepPlan

PURPOSE = zlib.crc32(b"gradient report")
"""Of its random streams, in the seed."""


class GradientReport:
    """Measures the terms that have rows of a stream."""

    def __init__(self, learner: Learner, plan: StepPlan, mesh: Mesh, layers: Sequence[int], seed: int):
        """`seed` is that of the run; `layers`: of the language model, counted from 0; none: the middle one.

        Raises ConfigError for a layer that does not exist or in which nothing is trained.
        """
        self.learner, self.plan, self.data_ranks, self.seed = learner, plan, mesh.data, seed
        self.world = mesh.world
        """Counts and gradients are summed over all ranks: as in the losses of a step, ranks that share their rows cancel."""
        every = learner.module.layers()
        for layer in layers:
            if not 0 <= layer < len(every):
                raise ConfigError(f"monitor.gradient_layers: {layer} is not a layer; legal are 0 to {len(every) - 1}.")
        trained = {id(p) for group in learner.trained_groups for p in group}
        chosen = layers or [len(every) // 2]
        self.parameters: list[nn.Parameter] = [p for layer in chosen for p in every[layer].parameters() if id(p) in trained]
        if not self.parameters:
            raise ConfigError(
                f"monitor.gradients: nothing is trained in layers {list(chosen)} of the language model. Give others in "
                "monitor.gradient_layers, train the group of the language model, or type monitor.gradients=0."
            )
        self.norms: dict[str, float] = {}
        """Term -> norm as of the last measurement."""

    def measure(self, step: Step) -> dict[str, float]:
        """Norms and cosines of all terms that have rows in this step. Collective: every rank makes the same calls."""
        of_streams = [r.term for r in self.plan.requests if not r.aside and r.stream is not None]
        terms = [(term, micro) for term in of_streams if (micro := _first_with(step, self.plan, term)) is not None]
        local = torch.stack([self._counts(micro, term).sum() for term, micro in terms]).double()
        counts = self.world.all_reduce_sum(local.to(self.world.device)).tolist()
        present = [(term, micro, count) for (term, micro), count in zip(terms, counts, strict=True) if count > 0]
        gradients = [self._gradient(step, micro, term, count) for term, micro, count in present]
        products = torch.zeros(len(present), len(present), dtype=torch.float64, device=self.world.device)
        for parts in zip(*gradients, strict=True):  # one parameter at a time: whole in float32, of all terms
            whole = torch.stack([self.world.all_reduce_sum(part.float().flatten()) for part in parts])
            products += (whole @ whole.T).double()
        return self._metrics([term for term, _, _ in present], products.cpu())

    def _counts(self, micro: MicroStep, term: str) -> Tensor:
        request = next(r for r in self.plan.requests if r.term == term)
        return micro.inputs[request.pass_name].counts[micro.plan.rows_at(request.pass_name, term)]

    def _gradient(self, step: Step, micro: MicroStep, term: str, count: float) -> list[Tensor]:
        """This rank's share of the gradient of a term, one tensor per parameter."""
        # For noise inside the model. The passes of the step are seeded again.
        torch.manual_seed(derive(self.seed, step.number, self.plan.terms.index(term), self.data_ranks.rank, PURPOSE))
        request = next(r for r in self.plan.requests if r.term == term)
        rows = take_rows(micro.inputs[request.pass_name], micro.plan.rows_at(request.pass_name, term)).to(self.world.device)
        with self.learner.aside():
            for parameter in self.parameters:
                parameter.requires_grad_(True)
            loss = self.learner.module(rows).loss_sum.sum() / count
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        # A layer may have parameters that a pass does not use.
        shapes = [getattr(parameter, "ds_shape", parameter.shape) for parameter in self.parameters]
        return [
            torch.zeros(shape, dtype=parameter.dtype, device=self.world.device) if part is None else part
            for part, shape, parameter in zip(found, shapes, self.parameters, strict=True)
        ]

    def _metrics(self, terms: Sequence[str], products: Tensor) -> dict[str, float]:
        norms = products.diagonal().sqrt()
        self.norms = dict(zip(terms, norms.tolist(), strict=True))
        metrics = {names.gradient_norm(term): norm for term, norm in self.norms.items()}
        for i, first in enumerate(terms):
            for j in range(i + 1, len(terms)):
                if norms[i] > 0 and norms[j] > 0:
                    metrics[names.gradient_cosine(first, terms[j])] = float(products[i, j] / norms[i] / norms[j])
        return metrics


def _first_with(step: Step, plan: StepPlan, term: str) -> MicroStep | None:
    """The first micro-step in which a term does not rest: the same on all ranks."""
    return next((micro for micro in step.micro_steps if plan.has_rows_in(term, micro.plan)), None)
