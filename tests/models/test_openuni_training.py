"""What is trained: groups, adapters, modes."""

from __future__ import annotations

import torch

from megaunigame.models.openuni import OpenUni
from megaunigame.step.requests import GENERATE, UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rows import UnderstandRow
from tests.models.shared import ALL_TARGETS, built

PLAN = plan_from([RowRequest("u", UNDERSTAND, "s", 1)])


def test_every_parameter_is_in_exactly_one_group(openuni):
    for name, _ in openuni.named_parameters():
        owners = [g for g, prefixes in openuni.groups().items() if name.startswith(tuple(prefixes))]
        assert len(owners) == 1, (name, owners)
    assert all(list(openuni.group_parameters(group)) for group in openuni.groups())
    assert set(openuni.default_trainable()) == set(openuni.groups()) - {"vision"}
    assert set(openuni.groups_of_pass(GENERATE, True)) == set(openuni.groups())


def test_lora_trains_adapters_of_the_language_model_only(openuni, picture):
    inputs = openuni.processor.collate(PLAN, UNDERSTAND, [UnderstandRow([picture(0)], [("what ?", "ball")])], [0], ["a"])
    with torch.no_grad():
        base = openuni(UNDERSTAND, inputs).loss_sum
    openuni.add_lora(rank=4, alpha=8, dropout=0.0, targets=ALL_TARGETS, seed=0)
    trained = {n for n, p in openuni.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(ALL_TARGETS) * 2
    assert all("lora_" in n and n.startswith("model.language_model.layers.") for n in trained)
    assert {openuni.group_of(n) for n in trained} == {"lm"}
    loss = openuni(UNDERSTAND, inputs).loss_sum
    torch.testing.assert_close(loss.detach(), base)
    loss.sum().backward()
    assert all((p.grad is not None) == (n in trained) for n, p in openuni.named_parameters())


def test_a_frozen_tower_and_the_autoencoder_stay_in_eval_mode(openuni):
    openuni.vision_tower.requires_grad_(False)
    openuni.train()
    assert openuni.language_model.training and openuni.transformer.training
    assert not any(m.training for m in openuni.vision_tower.modules())
    assert not any(m.training for m in openuni.autoencoder.modules())


def test_the_autoencoder_is_not_part_of_the_model(openuni_path):
    model = built(OpenUni, openuni_path, max_length=96)
    names = set(model.state_dict())
    model.load_frozen(str(openuni_path), torch.device("cpu"), torch.float32)
    assert set(model.state_dict()) == names
    model.requires_grad_(True)
    assert not any(p.requires_grad for p in model.autoencoder.parameters())
