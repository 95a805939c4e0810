"""What is trained: groups, adapters, modes."""

from __future__ import annotations

import pytest
import torch

from megaunigame.errors import ModelError
from megaunigame.models.janus import Janus
from megaunigame.step.requests import UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rows import UnderstandRow
from tests.models.shared import ALL_TARGETS, built

PLAN = plan_from([RowRequest("u", UNDERSTAND, "s", 1)])


def test_every_parameter_is_in_exactly_one_group(model):
    for name, _ in model.named_parameters():
        owners = [g for g, prefixes in model.groups().items() if name.startswith(tuple(prefixes))]
        assert len(owners) == 1, (name, owners)
    assert all(list(model.group_parameters(group)) for group in model.groups())
    assert set(model.default_trainable()) == set(model.groups()) - {"vision"}


def test_lora_trains_adapters_of_the_language_model_only(model, picture):
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    inputs = model.processor.collate(PLAN, UNDERSTAND, [UnderstandRow([picture(0)], [("what ?", "ball")])], [0], ["a"])
    with torch.no_grad():
        base = model(UNDERSTAND, inputs).loss_sum
    model.add_lora(rank=4, alpha=8, dropout=0.0, targets=ALL_TARGETS, seed=0)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(ALL_TARGETS) * 2
    assert all("lora_" in n and n.startswith("model.language_model.layers.") for n in trained)
    assert {model.group_of(n) for n in trained} == {"lm"}
    loss = model(UNDERSTAND, inputs).loss_sum
    torch.testing.assert_close(loss.detach(), base)  # the second matrix starts at zero
    loss.sum().backward()
    assert all(p.grad is None for n, p in model.named_parameters() if n not in trained)
    assert any(p.grad.abs().max() > 0 for n, p in model.named_parameters() if n in trained)
    for name, parameter in model.named_parameters():
        assert name in trained or torch.equal(parameter, before[name.replace(".base_layer", "")])


def test_adapters_start_equal_everywhere_and_leave_the_random_state_alone(folder):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = Janus.load(folder)
        expected = torch.get_rng_state()
        model.add_lora(rank=2, alpha=4, dropout=0.0, targets=["q_proj"], seed=0)
        assert torch.equal(torch.get_rng_state(), expected)
        states.append({n: p for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(p, states[1][n]) for n, p in states[0].items())


def test_unknown_lora_targets_are_refused(model):
    with pytest.raises(ModelError, match="Unknown LoRA target 'query'.*down_proj, gate_proj"):
        model.add_lora(rank=2, alpha=4, dropout=0.0, targets=["q_proj", "query"], seed=0)
    with pytest.raises(ModelError, match="No LoRA targets"):
        model.add_lora(rank=2, alpha=4, dropout=0.0, targets=[], seed=0)


def test_a_frozen_tower_stays_in_eval_mode(model):
    model.model.vision_model.requires_grad_(False)
    model.train()
    assert model.language_model.training and not model.model.vision_model.training
    assert not any(m.training for m in model.model.vision_model.modules())
    assert not model.image_tokenizer.training
    model.model.vision_model.requires_grad_(True)
    assert model.train().model.vision_model.training
    assert not model.eval().language_model.training


def test_the_image_tokenizer_is_not_part_of_the_model(folder):
    model = built(Janus, folder, max_length=96)
    with pytest.raises(RuntimeError, match="load_frozen"):
        model.encode_target(torch.zeros(1, 3, 16, 16))
    names = set(model.state_dict())
    model.load_frozen(str(folder), torch.device("cpu"), torch.float32)
    assert set(model.state_dict()) == names
    model.requires_grad_(True)
    assert not any(p.requires_grad for p in model.image_tokenizer.parameters())
    assert model.encode_target(torch.zeros(1, 3, 16, 16)).shape == (1, 16)


def test_image_tokenizer_alone_can_be_trained(folder, picture):
    tokenizer = Janus.load(folder).image_tokenizer.requires_grad_(True).train()
    pixels = torch.stack([picture(s) for s in range(4)]).float() / 127.5 - 1
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        output = tokenizer(pixels)
        loss = (output.reconstruction - pixels).square().mean() + output.codebook_loss + output.commit_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert tokenizer.training and tokenizer.encoder.mid.training
