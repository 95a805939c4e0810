"""Ranks that divide the layers compute what one model computes, and draw its pictures."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from megaunigame.config import TENSOR_PARALLEL, EvaluationConfig
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
    # That of the first rank, whatever the other has drawn.
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


@pytest.mark.parametrize(
    ("ranks", "sequence", "asked", "expected"),
    [
        (4, 1, 0, ""),
        (4, 1, 3, r"evaluation.tensor_ranks=3 does not divide ranks, heads and features. Legal: 2\b"),
        (3, 1, 0, "no number above 1 divides the 3 ranks of a node, heads and features"),
        (4, 2, 0, "the ranks share rows already \\(engine.sequence_ranks=2\\)"),
    ],
)
def test_weights_that_cannot_be_divided_are_refused_before_step_1(model, monkeypatch, ranks, sequence, asked, expected):
    if model.name in FIXED_HEADS:
        expected = "the ranks share rows" if sequence > 1 else "(its layers have|.* computes with a fixed number of heads)"
    world = OneRank(ranks)
    mesh = Mesh(world, data=OneRank(ranks // sequence), sequence=OneRank(sequence))
    made = []
    monkeypatch.setattr(gathering, "whole_bytes", lambda learner: 10**9)
    monkeypatch.setattr(gathering, "divided_bytes", lambda learner, number: 10**9 // number)
    monkeypatch.setattr(Mesh, "of", lambda world, number: (made.append(number), Mesh(world, world, OneRank(number)))[1])
    weights = SuiteWeights(EvaluationConfig(gather=TENSOR_PARALLEL, tensor_ranks=asked), mesh)
    learner, suite, said = SimpleNamespace(module=model), SimpleNamespace(drawings=lambda ranks: 1), []
    with pytest.raises(ConfigError, match=f"evaluation.gather=tensor_parallel: .*{expected}") if expected else nullcontext():
        weights.check_drawing(learner, [suite], said.append)
    assert bool(said) == bool(made) == (not expected)
    weights.check_drawing(learner, [SimpleNamespace(drawings=lambda ranks: 0)], said.append)  # nothing is drawn
