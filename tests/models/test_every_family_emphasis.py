"""Losses of generate rows that weigh more where a mask says so, in every family."""

from __future__ import annotations

import math

import pytest
import torch

from megaunigame.models.emphasis import emphasized
from megaunigame.step.rows import GenerateRow
from tests.models.shared import generate


def test_weights_of_a_row_have_mean_one():
    losses, emphasis = torch.rand(2, 16), torch.ones(2, 8, 8)
    assert torch.equal(emphasized(losses, None), losses) and torch.allclose(emphasized(losses, emphasis), losses)
    emphasis[1, :4] = 3.0  # the upper half of the second row
    weighted = emphasized(losses, emphasis)
    assert torch.allclose(weighted[0], losses[0])
    assert torch.allclose(weighted[1], losses[1] * torch.tensor([1.5] * 8 + [0.5] * 8))
    maps = torch.rand(2, 3, 4, 4)
    assert torch.allclose(
        emphasized(maps, emphasis)[1, 2].flatten(), maps[1, 2].flatten() * torch.tensor([1.5] * 8 + [0.5] * 8)
    )


def test_the_loss_of_a_row_follows_the_mask(model, picture):
    """With weight w inside of a mask, a row's loss is the weighted mean of inside and outside, in every family."""
    model.eval()
    target = picture(0)
    mask = torch.zeros(target.shape[1:], dtype=torch.bool)
    mask[: mask.shape[0] // 2] = True

    def loss(weight):
        row = GenerateRow("a", target, emphasis=(mask, weight))
        with torch.no_grad():
            return float(model(generate(model, row)).loss_sum[0])

    plain = loss(1.0)
    inside, outside = loss(1e6), loss(1e-6)
    assert plain == pytest.approx((inside + outside) / 2, rel=1e-3)
    assert loss(3.0) == pytest.approx(0.75 * inside + 0.25 * outside, rel=1e-3)
    assert not math.isclose(inside, outside, rel_tol=1e-3), "both halves alike: nothing was compared"


def test_rows_without_a_mask_are_as_before(model, picture):
    mask = torch.ones(picture(0).shape[1:], dtype=torch.bool)
    plain = generate(model, GenerateRow("a", picture(0)), GenerateRow("b", picture(1)))
    assert plain.emphasis is None
    even = generate(model, GenerateRow("a", picture(0), emphasis=(mask, 5.0)), GenerateRow("b", picture(1)))
    model.eval()
    with torch.no_grad():
        assert torch.allclose(model(even).loss_sum, model(plain).loss_sum, rtol=1e-5)
