"""UniGame's paths through families: pictures that are asked about, gradients that reach the adversary."""

from __future__ import annotations

import pytest
import torch

from megaunigame.adversary.perturber import Perturber
from megaunigame.objectives.unigame.attack import Attack
from megaunigame.objectives.unigame.paths import build_path
from megaunigame.objectives.unigame.settings import Settings
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import generate, understand

ANCHORED, PLAIN = {"anchor": "source"}, {"anchor": "none"}


def attacked(model, picture, **settings):
    """(path, its inputs, what it made of them, the adversary)."""
    torch.manual_seed(0)
    adversary = Perturber(Perturber.Config(eps_max=0.5, budget="relative", hidden=8), model.token_width)
    path = build_path(Settings(**settings), adversary)
    redraw = [GenerateRow("the same", picture(seed), picture(seed)) for seed in (0, 1)]
    question = [UnderstandRow([picture(seed)], [("what ?", "ball")]) for seed in (0, 1)]
    inputs = Attack(generate(model, *redraw), understand(model, *question))
    model.requires_grad_(False)
    return path, inputs, path.attack(model, inputs, torch.Generator().manual_seed(0)), adversary


@pytest.mark.parametrize("settings", [ANCHORED, PLAIN, {"path": "embedding"}, {"path": "sampled"}])
def test_the_adversary_gets_a_gradient(model, picture, settings):
    _, inputs, attack, adversary = attacked(model, picture, **settings)
    model(attack.question).loss_sum.sum().backward()
    gradients = [p.grad for p in adversary.parameters()]
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in gradients)
    with torch.no_grad():
        drawn, seen = model(inputs.redraw).hidden, model.visual_tokens(inputs.question.images)[:, 0]
    assert attack.delta.shape == (drawn if "anchor" in settings else seen).shape
    assert attack.pictures.shape == inputs.redraw.targets.shape
    assert model.has_codes or ((attack.changed > 0) == ("anchor" in settings)).all()


@pytest.mark.parametrize("tiny", ["openuni"], indirect=True)
def test_an_anchored_attack_changes_the_encoded_picture(model, picture):
    path, inputs, attack, _ = attacked(model, picture, **ANCHORED)
    with torch.no_grad():
        unperturbed = path.unperturbed(model, inputs, attack)
    encoded = model.decode_target(model.encode_target(inputs.redraw.targets))
    assert torch.equal(unperturbed, encoded)
    assert (attack.pictures - encoded).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("tiny", ["openuni"], indirect=True)
def test_sampled_pictures_are_candidates(model, picture):
    path, inputs, attack, _ = attacked(model, picture, path="sampled")
    losses = model(attack.question).loss_sum
    pictures, sums = path.harvest(model, inputs, attack, losses, torch.Generator().manual_seed(0))
    assert pictures.shape == (1, 2, 3, 32, 32) and sums.shape == (1, 2)
    assert attack.passes == 1 + model.calls_per_sample
