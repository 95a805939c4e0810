"""The learner aside: no dropout of any kind, no gradient in its weights, and everything back after it."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from transformers import LlamaConfig, LlamaModel

from megaunigame.engine.zero3 import Learner
from megaunigame.step.rows import UnderstandRow
from tests.models.shared import understand
from tests.tiny import write_tiny
from tests.worlds import OneRank


def learner_of(module: torch.nn.Module, stage: int) -> Learner:
    return Learner(SimpleNamespace(module=module), OneRank(), stage, [list(module.parameters())])


def test_no_dropout_not_even_in_attention():
    config = LlamaConfig(
        vocab_size=16, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, attention_dropout=0.5
    )
    module = torch.nn.Sequential(torch.nn.Dropout(0.5), LlamaModel(config)).train()
    learner = learner_of(module, stage=2)
    given = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))

    def states():
        return module[1](inputs_embeds=module[0](given)).last_hidden_state

    assert not torch.equal(states(), states())
    with learner.aside():
        assert torch.equal(states(), states()) and not states().requires_grad
    assert not torch.equal(states(), states()) and states().requires_grad
    assert all(m.training for m in module.modules())


def test_a_family_that_drops_inside_its_attention_drops_nothing(tmp_path):
    """Emu3 has no layer for the dropout of its attention."""
    text = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "attention_dropout": 0.5}
    vq = {"codebook_size": 8, "channel_multiplier": [1, 1], "attn_resolutions": [1]}
    tiny = write_tiny("emu3", tmp_path, ["what is it ?"], settings={"image_size": 4}, text_config=text, vq_config=vq)
    model = tiny.load().train()
    trained = list(model.parameters())
    learner = learner_of(model, stage=3)
    inputs = understand(model, UnderstandRow([], [("what ?", "it")]))

    def loss():
        torch.manual_seed(torch.initial_seed() + 1)
        return model(inputs).loss_sum

    with torch.no_grad():
        expected = model.eval()(inputs).loss_sum
    model.train()
    before = {name: module.training for name, module in model.named_modules()}
    assert not torch.equal(loss(), loss())
    with learner.aside():
        assert torch.equal(loss(), expected) and not any(p.requires_grad for p in trained)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(p.requires_grad for p in trained)
    for layer in model.language_model.layers:  # attention alone, with the residual dropouts off
        layer.dropout.eval()
    assert not torch.equal(loss(), loss())
