"""The loss of a step, term by term: sums over all rows divided once by counts over all ranks, against plain numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megaunigame.step.inputs import GenerateInputs, UnderstandInputs
from megaunigame.step.losses import LossTerms, PassTerm
from megaunigame.step.micro import MicroStep, Step
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from tests.passes import pass_inputs
from tests.worlds import OneRank

PLAN = plan_from([
    RowRequest("asked", UNDERSTAND, "s", 2, weight=2.0),
    RowRequest("drawn", GENERATE, "s", 1, weight=3.0),
    RowRequest("aside", GENERATE, "s", 4, aside=True),
])  # fmt: skip


class Doubled(PassTerm):
    """Twice the loss of every row of the understand pass that has one."""

    def __init__(self):
        super().__init__("doubled", UNDERSTAND)

    def weight(self, step):
        return 5.0

    def counted(self, inputs):
        return inputs.counts > 0

    def losses(self, inputs, output):
        return torch.where(inputs.counts > 0, 2 * output.loss_sum, 0.0)


def terms(ranks=1):
    """asked, drawn, doubled, joined"""
    return LossTerms(PLAN, [Doubled()], ["joined"], OneRank(ranks))


def inputs(kind, counts, term):
    tokens = torch.ones(len(counts), 3, dtype=torch.long)
    return pass_inputs(kind, tokens, terms=torch.tensor([term] * len(counts)), counts=torch.tensor(counts))


def step(factors=None):
    """Two micro-steps; a dummy row in the first."""
    micro_steps = [
        MicroStep(n, PLAN, {GENERATE: inputs(GenerateInputs, [4.0], 1), UNDERSTAND: inputs(UnderstandInputs, counts, 0)})
        for n, counts in enumerate(([3.0, 0.0], [7.0, 1.0]))
    ]
    return Step(0, 1e-3, micro_steps, 1e-3, factors=factors or {})


@pytest.mark.parametrize("ranks", [1, 3])
def test_counts_are_those_of_all_micro_steps_and_ranks(ranks):
    assert terms(ranks).counts(step()).tolist() == [11 * ranks, 8 * ranks, 3 * ranks, 1]


def test_weights_are_those_of_the_recipe_times_the_factors_of_the_step():
    assert terms().weights(step()).tolist() == [2, 3, 5, 1]
    assert terms().weights(step({"drawn": 0.5, "doubled": 0.1, "joined": 4.0})).tolist() == pytest.approx([2, 1.5, 0.5, 4])


def test_a_pass_adds_to_its_own_terms():
    loss = torch.tensor([10.0, 0.0], requires_grad=True)
    sums = terms().sums(inputs(UnderstandInputs, [3.0, 0.0], 0), SimpleNamespace(loss_sum=loss))
    assert sums.tolist() == [10, 0, 20, 0]
    sums.sum().backward()
    assert loss.grad.tolist() == [3, 1]
    drawn = terms().sums(inputs(GenerateInputs, [4.0], 1), SimpleNamespace(loss_sum=torch.tensor([6.0])))
    assert drawn.tolist() == [0, 6, 0, 0]


def test_a_loss_that_joins_keeps_its_graph_and_its_place():
    joined, like = torch.tensor(2.5, requires_grad=True), torch.zeros(4)
    sums = terms().joined_sums({"joined": joined}, like)
    assert sums.tolist() == [0, 0, 0, 2.5] and terms().joined_sums({}, like).tolist() == [0] * 4
    sums.sum().backward()
    assert joined.grad.item() == 1
    with pytest.raises(ValueError, match="'other'"):
        terms().joined_sums({"other": joined}, like)


def test_the_total_is_the_weighted_sum_of_the_means():
    found = terms()
    means = found.means(torch.tensor([22.0, 12.0, 9.0, 0.5]), torch.tensor([11.0, 8.0, 0.0, 1.0]))
    assert means == {"asked": 2.0, "drawn": 1.5, "joined": 0.5}, "a term without a position has no mean"
    metrics = found.metrics(means, torch.tensor([2.0, 3.0, 5.0, 1.0]))
    assert metrics == {"loss/asked": 2.0, "loss/drawn": 1.5, "loss/joined": 0.5, "loss/total": 2 * 2 + 3 * 1.5 + 0.5}


def test_sums_that_are_not_finite_are_named():
    nan, inf = float("nan"), float("inf")
    assert list(terms().not_finite(torch.tensor([1.0, nan, 2.0, inf]))) == ["drawn", "joined"]
