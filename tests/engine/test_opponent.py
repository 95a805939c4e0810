"""The learner as an opponent: no dropout of any kind, no gradient in its weights, everything back afterwards."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from megaunigame.engine.zero3 import Learner
from megaunigame.models.emu3 import Emu3
from megaunigame.models.emu3.folder import random_state, train_tokenizer, write_folder
from megaunigame.step.requests import UNDERSTAND, RowRequest, plan_from
from megaunigame.step.rows import UnderstandRow
from tests.tiny import tiny_config


def test_an_opponent_drops_nothing(tmp_path):
    """Emu3 drops inside its attention too, not in a layer of its own."""
    tokenizer = train_tokenizer(["what is it ?"], 270, codes=8)
    config = tiny_config(
        "emu3",
        tokenizer,
        text_config={"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "attention_dropout": 0.5},
        vq_config={"codebook_size": 8, "channel_multiplier": [1, 1], "attn_resolutions": [1]},
    )
    write_folder(tmp_path, config, random_state(config, 0), tokenizer, image_size=4)
    model = Emu3.load(tmp_path, max_length=64).train()
    trained = list(model.parameters())
    learner = Learner(SimpleNamespace(module=model), world=None, stage=3, trained_groups=[trained])  # type: ignore[arg-type]
    plan = plan_from([RowRequest("u", UNDERSTAND, "s", 1)])
    inputs = model.processor.collate(plan, UNDERSTAND, [UnderstandRow([], [("what ?", "it")])], [0], ["key"])

    def loss():
        torch.manual_seed(torch.initial_seed() + 1)
        return model(UNDERSTAND, inputs).loss_sum

    with torch.no_grad():
        expected = model.eval()(UNDERSTAND, inputs).loss_sum
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
