"""The learner as an opponent: nothing of it is random, nothing takes a gradient, and afterwards all is as before."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from transformers import LlamaConfig, LlamaModel

from megaunigame.engine.zero3 import Learner
from megaunigame.parallel.world import World


def test_an_opponent_has_no_dropout_not_even_in_its_attention():
    config = LlamaConfig(
        vocab_size=16, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, attention_dropout=0.5
    )
    module = torch.nn.Sequential(torch.nn.Dropout(0.5), LlamaModel(config)).train()
    trained = list(module.parameters())
    learner = Learner(SimpleNamespace(module=module), World(0, 1, 0, torch.device("cpu")), 2, [trained])
    given = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))

    def states():
        return module[1](inputs_embeds=module[0](given)).last_hidden_state

    assert not torch.equal(states(), states())
    with learner.aside():
        assert torch.equal(states(), states()) and not states().requires_grad
    assert not torch.equal(states(), states()) and states().requires_grad
    assert all(m.training for m in module.modules())
