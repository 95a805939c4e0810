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


# Tokens of a drawn picture (queries, codes) and of a source, side of a picture.
@pytest.mark.parametrize(("family", "drawn", "seen", "side"), [("openuni", 6, 4, 32), ("emu3", 16, 9, 16)])
@pytest.mark.parametrize("settings", [ANCHORED, PLAIN, {"path": "embedding"}, {"path": "sampled"}])
def test_the_adversary_gets_a_gradient(tiny_of, picture, family, drawn, seen, side, settings):
    model = tiny_of(family).load()
    _, _, attack, adversary = attacked(model, picture, **settings)
    model(attack.question).loss_sum.sum().backward()
    gradients = [p.grad for p in adversary.parameters()]
    assert all(torch.isfinite(g).all() for g in gradients) and any(g.abs().max() > 0 for g in gradients)
    tokens = drawn if "anchor" in settings else seen
    assert attack.delta.shape == (2, tokens, 64) and attack.pictures.shape == (2, 3, side, side)
    assert family == "emu3" or ((attack.changed > 0) == ("anchor" in settings)).all()


def test_an_anchored_attack_changes_the_encoded_picture(tiny_of, picture):
    openuni = tiny_of("openuni").load()
    path, inputs, attack, _ = attacked(openuni, picture, **ANCHORED)
    with torch.no_grad():
        unperturbed = path.unperturbed(openuni, inputs, attack)
    encoded = openuni.decode_target(openuni.encode_target(inputs.redraw.targets))
    assert torch.equal(unperturbed, encoded)
    assert (attack.pictures - encoded).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_sampled_pictures_are_candidates(tiny_of, picture):
    openuni = tiny_of("openuni").load()
    path, inputs, attack, _ = attacked(openuni, picture, path="sampled")
    losses = openuni(attack.question).loss_sum
    pictures, sums = path.harvest(openuni, inputs, attack, losses, torch.Generator().manual_seed(0))
    assert pictures.shape == (1, 2, 3, 32, 32) and sums.shape == (1, 2)
    assert attack.passes == 1 + openuni.calls_per_sample
