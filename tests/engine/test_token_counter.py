"""Tokens of passes: all that is computed, and what of it is useful."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from megaunigame.engine.token_counter import TokenCounter
from megaunigame.step.inputs import GenerateInputs, PassInputs, UnderstandInputs
from megaunigame.step.requests import GENERATE, UNDERSTAND
from tests.passes import pass_inputs

AFTER_PROMPT = 9


class Silent(nn.Module):
    packed_passes: tuple[str, ...] = ()

    def forward(self, inputs: PassInputs, predict: bool = False) -> None:
        pass


def inputs(kind: type[PassInputs], lengths: list[int], counts: list[float], width: int) -> PassInputs:
    attention = torch.arange(width).expand(len(lengths), -1) < torch.tensor(lengths).unsqueeze(1)
    return pass_inputs(kind, torch.zeros(len(lengths), width, dtype=torch.int64), attention, counts=torch.tensor(counts))


def test_padding_and_dummies_are_computed_but_not_useful():
    model = Silent()
    counter = TokenCounter(model, AFTER_PROMPT, torch.device("cpu"))
    model(inputs(UnderstandInputs, [6, 4, 1], [3, 2, 0], width=7))
    assert counter.pop().tolist() == [3 * 7, 6 + 4]
    model(inputs(GenerateInputs, [3, 1], [4, 0], width=5), predict=True)
    assert counter.pop().tolist() == [2 * (5 + AFTER_PROMPT), 3 + AFTER_PROMPT]


def test_packs_have_dummies_but_no_padding():
    model = Silent()
    model.packed_passes = (UNDERSTAND, GENERATE)
    counter = TokenCounter(model, AFTER_PROMPT, torch.device("cpu"))
    for kind, lengths, counts in ((UnderstandInputs, [6, 4, 1], [3, 2, 0]), (GenerateInputs, [3, 1], [4, 0])):
        model(dataclasses.replace(inputs(kind, lengths, counts, width=7), lengths=lengths))
    drawn = 3 + AFTER_PROMPT
    assert counter.pop().tolist() == [6 + 4 + 1 + drawn + 1 + AFTER_PROMPT, 6 + 4 + drawn]
    model(inputs(UnderstandInputs, [2], [1], width=4))
    assert counter.pop().tolist() == [4, 2], "lengths that the host does not know"


def test_passes_add_up_until_they_are_taken():
    model = Silent()
    counter = TokenCounter(model, AFTER_PROMPT, torch.device("cpu"))
    for _ in range(3):
        model(inputs(UnderstandInputs, [2], [1], width=4))
    assert counter.pop().tolist() == [12, 6]
    assert counter.pop().tolist() == [0, 0]
    assert counter.pop().dtype == torch.float64


def test_no_pass_asks_the_device_for_a_number():
    """On the meta device a number cannot be had."""
    model = Silent()
    counter = TokenCounter(model, AFTER_PROMPT, torch.device("meta"))
    model(inputs(GenerateInputs, [3, 1], [4, 0], width=5).to(torch.device("meta")))
    assert counter.pop().shape == (2,)
