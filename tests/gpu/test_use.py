"""A model in use on a GPU: the device without a number, answers, drawn and redrawn pictures."""

from __future__ import annotations

import pytest
import torch

import megaunigame
from tests.inference.conftest import WEIGHTS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ask_draw_and_redraw(gpu, dtype):
    model = megaunigame.load(WEIGHTS, device="cuda", dtype=dtype)
    assert model.device == gpu and next(model.network.parameters()).dtype == dtype
    picture = model.draw("a red cube left of a blue ball .", seed=3)
    assert picture.size == (64, 64) and len(set(picture.getdata())) > 100
    assert model.redraw(picture, "pixel").size == (64, 64)
    answers = model.ask(picture, ["what color is the cube ?", "how many objects are there ?"], max_tokens=8)
    assert len(answers) == 2 and all(answers)
