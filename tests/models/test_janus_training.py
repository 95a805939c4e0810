"""What is trained: groups, adapters, modes."""

from __future__ import annotations

import torch

from megaunigame.models.janus import Janus
from megaunigame.step.requests import UNDERSTAND, RowRequest, plan_from

PLAN = plan_from([RowRequest("u", UNDERSTAND, "s", 1)])


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
