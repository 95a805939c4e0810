"""What is trained: groups, adapters, modes, dropout."""

from __future__ import annotations

import torch

from megaunigame.models.emu3 import Emu3
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import ALL_TARGETS, built, generate, understand


def test_every_parameter_is_in_exactly_one_group(emu3):
    for name, _ in emu3.named_parameters():
        owners = [g for g, prefixes in emu3.groups().items() if name.startswith(tuple(prefixes))]
        assert len(owners) == 1, (name, owners)
    assert all(list(emu3.group_parameters(group)) for group in emu3.groups())
    assert set(emu3.default_trainable()) == set(emu3.groups()) == set(emu3.groups_of_pass(GENERATE, False))


def test_lora_trains_adapters_of_the_language_model_only(emu3, picture):
    inputs = understand(emu3, UnderstandRow([picture(0)], [("what ?", "ball")]))
    with torch.no_grad():
        base = emu3(UNDERSTAND, inputs).loss_sum
    emu3.add_lora(rank=4, alpha=8, dropout=0.0, targets=ALL_TARGETS, seed=0)
    trained = {n for n, p in emu3.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(ALL_TARGETS) * 2
    assert all("lora_" in n and n.startswith("model.text_model.layers.") for n in trained)
    assert {emu3.group_of(n) for n in trained} == {"lm"}
    loss = emu3(UNDERSTAND, inputs).loss_sum
    torch.testing.assert_close(loss.detach(), base)
    (loss.sum() + emu3(GENERATE, generate(emu3, GenerateRow("a cube", picture(0)))).loss_sum.sum()).backward()
    assert all((p.grad is not None) == (n in trained) for n, p in emu3.named_parameters())


def test_the_vision_tokenizer_is_not_part_of_the_model(emu3_path):
    model = built(Emu3, emu3_path, max_length=128)
    names = set(model.state_dict())
    model.load_frozen(str(emu3_path), torch.device("cpu"), torch.bfloat16)
    assert set(model.state_dict()) == names
    model.requires_grad_(True)
    model.train()
    tokenizer = model.vision_tokenizer
    assert not any(p.requires_grad for p in tokenizer.parameters()) and not any(m.training for m in tokenizer.modules())
    kinds = {t.dtype for t in (*tokenizer.parameters(), *tokenizer.buffers())}
    assert kinds == {torch.bfloat16, torch.int64}


def test_a_few_steps_learn_a_picture_and_an_answer(emu3, picture):
    emu3.train()
    optimizer = torch.optim.AdamW(emu3.parameters(), lr=3e-3)
    asked = understand(emu3, UnderstandRow([picture(0)], [("what ?", "a red ball")]))
    drawn = generate(emu3, GenerateRow("a cube", picture(0)))
    losses = []
    for _ in range(8):
        loss = emu3(UNDERSTAND, asked).loss_sum.sum() + emu3(GENERATE, drawn).loss_sum.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
