"""Ranks that divide the layers compute what one model computes, and draw its pictures."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from megaunigame.config import EACH_CALL, ONCE, TENSOR_PARALLEL, EvaluationConfig
from megaunigame.engine.memory_plan import short_bytes
from megaunigame.engine.tensor_parallel import add_sums, legal_parts, own_part, parts, why_whole
from megaunigame.errors import ConfigError
from megaunigame.models.base import evaluating
from megaunigame.parallel.mesh import Mesh
from megaunigame.step.rows import UnderstandRow
from megaunigame.training import gathering
from megaunigame.training.gathering import SuiteWeights
from tests.models.shared import TURNS, understand
from tests.worlds import OneRank, on_ranks

FIXED_HEADS = {"bagel", "chameleon"}
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": [], "seed": 0}


def divided(model, world):
    """A copy of the model with the parts of this rank."""
    own = copy.deepcopy(model)
    whole = {name: parameter.numel() for name, parameter in own.named_parameters()}
    for piece in parts(own):
        piece.parameter.data = own_part(piece, world)
    add_sums(own, world)
    return own, sum(whole.values()) - sum(parameter.numel() for parameter in own.parameters())


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@torch.no_grad()
def test_two_ranks_that_divide_the_layers_read_and_draw_as_one_model(model, picture, adapted):
    if model.name in FIXED_HEADS:
        assert why_whole(model)
        return
    if adapted:
        model.add_lora(**LORA)
    random = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name.endswith("bias"):
            parameter.normal_(std=0.1, generator=random)
    assert not why_whole(model)
    attention = next(module for module in model.layers()[0].modules() if hasattr(module, "k_proj"))
    heads = attention.k_proj.weight.shape[0] // attention.head_dim
    assert 2 in legal_parts(model, 4) and max(legal_parts(model, 2**16)) <= heads
    asked = understand(model, UnderstandRow([picture(0)], TURNS[:2]), UnderstandRow([], TURNS))
    prompts = model.processor.generate_prompts(["a cube", "two small red spheres"])

    def drawn(drawer, seed):
        generator = torch.Generator().manual_seed(seed)
        return drawer.sample(prompts, guidance=2.0, temperature=1.0, generator=generator)

    def work(world):
        own, smaller = divided(model, world)
        with evaluating(own):
            return own(asked).loss_sum, drawn(own, 3 + world.rank), smaller

    with evaluating(model):
        losses, pictures = model(asked).loss_sum, drawn(model, 3)
        assert not torch.equal(pictures, drawn(model, 4))
    results = on_ranks(2, work)
    for own_losses, _, smaller in results:
        torch.testing.assert_close(own_losses, losses, rtol=1e-5, atol=1e-5)
        assert smaller > 0
    # That of the first rank; the other has drawn other codes.
    torch.testing.assert_close(results[0][1], pictures, rtol=1e-3, atol=1e-3)


def test_dora_and_layers_of_other_shapes_are_not_divided(model):
    if model.name in FIXED_HEADS:
        return
    layer = model.layers()[0]
    layer.router = torch.nn.Linear(3, 3)
    assert "a linear layer router" in why_whole(model)
    del layer.router
    model.add_lora(**LORA, dora=True)
    assert "DoRA" in why_whole(model)


class Hosts(OneRank):
    """Ranks on hosts of these names."""

    names: list[str]

    def all_gather_object(self, value):
        return self.names


def hosts(*counts):
    world = Hosts(sum(counts))
    object.__setattr__(world, "names", [f"host{number}" for number, count in enumerate(counts) for _ in range(count)])
    return world


@pytest.mark.parametrize(
    ("world", "sequence", "asked", "made"),
    [
        (hosts(4), 1, 0, 4),
        (hosts(2, 2), 1, 2, 2),
        (hosts(4, 2), 1, 0, 2),
        (hosts(4), 1, 3, r"tensor_ranks=3: legal are 0 \(the largest\) and 2\b.*: divisors of ranks, heads and features"),
        (hosts(4), 1, 1, "tensor_ranks=1: legal are 0"),
        (hosts(1, 3), 1, 0, "no number divides heads, features and 4 ranks, and leaves a copy on one host"),
        (hosts(3), 1, 0, "no number divides heads, features and 3 ranks"),
        (hosts(4), 2, 0, "the ranks share rows already \\(engine.sequence_ranks=2\\)"),
    ],
)
def test_ranks_of_one_host_divide_the_weights_or_it_is_refused_before_step_1(model, monkeypatch, world, sequence, asked, made):
    if model.name in FIXED_HEADS:
        made = "the ranks share rows" if sequence > 1 else "(its layers have|.* computes with a fixed number of heads)"
    if made == 4:
        made = max(legal_parts(model, 4))  # a family has two key-value heads, or four
    mesh = Mesh(world, data=OneRank(world.size // sequence), sequence=OneRank(sequence))
    numbers, said = [], []
    monkeypatch.setattr(gathering, "whole_bytes", lambda learner: 10**9)
    monkeypatch.setattr(gathering, "divided_bytes", lambda learner, number: 10**9 // number)
    monkeypatch.setattr(gathering, "sum_seconds", lambda learner, sharers: 1.8)
    monkeypatch.setattr(Mesh, "of", lambda world, n, timeout: (numbers.append((n, timeout)), Mesh(world, world, OneRank(n)))[1])
    weights = SuiteWeights(EvaluationConfig(gather=TENSOR_PARALLEL, tensor_ranks=asked), mesh, 7.0)
    learner, suite = SimpleNamespace(module=model), SimpleNamespace(drawings=lambda ranks: 3)
    with nullcontext() if isinstance(made, int) else pytest.raises(ConfigError, match=made):
        weights.check_drawing(learner, [suite], said.append)
        weights.check_drawing(learner, [suite], said.append)
    if isinstance(made, int):
        assert numbers == [(made, 7.0)] and len(said) == 2
        calls = 3 * model.calls_per_sample
        assert f"takes {calls:,} calls of {made} ranks together ({short_bytes(10**9 // made)} a rank): at least " in said[0]
        weights.settings.most_drawing_hours = calls * 1.8 / 3600 / 2
        with pytest.raises(ConfigError, match="evaluation.most_drawing_hours=.*by sums that were timed.*a larger"):
            weights.check_drawing(learner, [suite], said.append)
    weights.check_drawing(learner, [SimpleNamespace(drawings=lambda ranks: 0)], said.append)  # nothing is drawn


def test_the_way_is_chosen_once_and_few_calls_are_not_worth_dividing_for(model, monkeypatch):
    if model.name in FIXED_HEADS:
        return
    monkeypatch.setattr(gathering, "whole_bytes", lambda learner: 10**9)
    fits = {"whole": False, "divided": True}
    monkeypatch.setattr(gathering, "fits_whole", lambda learner, share: fits["whole"])
    monkeypatch.setattr(gathering, "fits_divided", lambda learner, number, share: fits["divided"])
    learner, world = SimpleNamespace(module=model), hosts(2)
    weights = SuiteWeights(EvaluationConfig(), Mesh(world, data=world, sequence=OneRank(1)), 7.0)
    expected = TENSOR_PARALLEL if model.calls_per_sample > 2 else EACH_CALL
    assert weights.way(learner) == expected
    fits.update(whole=True, divided=False)
    assert weights.way(learner) == expected
    assert SuiteWeights(EvaluationConfig(), Mesh(world, data=world, sequence=OneRank(1)), 7.0).way(learner) == ONCE
