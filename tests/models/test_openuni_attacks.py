"""UniGame's paths through OpenUni: pictures that are asked about, gradients that reach the adversary."""

from __future__ import annotations

import pytest
import torch

from megaunigame.adversary.perturber import Perturber
from megaunigame.objectives.unigame.attack import Attack
from megaunigame.objectives.unigame.paths import build_path
from megaunigame.objectives.unigame.settings import Settings
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rows import GenerateRow, UnderstandRow

PLAN = plan_from([RowRequest("r", GENERATE, "s", 2, takes_source=True), RowRequest("q", UNDERSTAND, "s", 2)])


@pytest.fixture
def attacked(openuni, picture):
    """`attacked(path=..., anchor=...)`: (path, its inputs, what it made of them, the adversary)."""

    def run(**settings):
        torch.manual_seed(0)
        adversary = Perturber(Perturber.Config(eps_max=0.5, budget="relative", hidden=8), openuni.token_width)
        path = build_path(Settings(**settings), adversary)
        redraw = [GenerateRow("the same", picture(seed), picture(seed)) for seed in (0, 1)]
        question = [UnderstandRow([picture(seed)], [("what ?", "ball")]) for seed in (0, 1)]
        inputs = Attack(
            openuni.processor.collate(PLAN, GENERATE, redraw, [0, 0], ["a", "b"]),
            openuni.processor.collate(PLAN, UNDERSTAND, question, [1, 1], ["a", "b"]),
        )
        openuni.requires_grad_(False)
        return path, inputs, path.attack(openuni, inputs, torch.Generator().manual_seed(0)), adversary

    return run


@pytest.mark.parametrize("settings", [{"anchor": "source"}, {"anchor": "none"}, {"path": "embedding"}, {"path": "sampled"}])
def test_the_adversary_gets_a_gradient(openuni, attacked, settings):
    path, inputs, attack, adversary = attacked(**settings)
    openuni(UNDERSTAND, attack.question).loss_sum.sum().backward()
    gradients = [p.grad for p in adversary.parameters()]
    assert all(torch.isfinite(g).all() for g in gradients) and any(g.abs().max() > 0 for g in gradients)
    tokens = 6 if "anchor" in settings else 4  # queries behind a picture, visual tokens of a source
    assert attack.delta.shape == (2, tokens, 64) and attack.pictures.shape == (2, 3, 32, 32)
    assert ((attack.changed > 0) == ("anchor" in settings)).all()


def test_an_anchored_attack_changes_the_encoded_picture(openuni, attacked):
    path, inputs, attack, _ = attacked(anchor="source")
    with torch.no_grad():
        unperturbed = path.unperturbed(openuni, inputs, attack)
    encoded = openuni.decode_target(openuni.encode_target(inputs.redraw.targets))
    assert torch.equal(unperturbed, encoded)
    assert (attack.pictures - encoded).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_sampled_pictures_are_candidates(openuni, attacked):
    path, inputs, attack, _ = attacked(path="sampled")
    losses = openuni(UNDERSTAND, attack.question).loss_sum
    pictures, sums = path.harvest(openuni, inputs, attack, losses, torch.Generator().manual_seed(0))
    assert pictures.shape == (1, 2, 3, 32, 32) and sums.shape == (1, 2)
    assert attack.passes == 1 + openuni.calls_per_sample
