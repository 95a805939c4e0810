"""What is trained: groups, adapters, modes, dropout."""

from __future__ import annotations

import torch

from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import generate, understand


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
