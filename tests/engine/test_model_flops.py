"""Counted operations against those on paper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from torch import nn
from torch.utils.checkpoint import checkpoint

from megaunigame.engine.model_flops import CountFlops, ModelFlops
from tests.worlds import OneRank

TOKENS, WIDTH, OUT = 11, 7, 5
LINEAR = 2 * TOKENS * WIDTH * OUT
"""Operations of the forward of one linear layer."""


def counted(trained: bool, differentiated: bool, again: bool = False) -> CountFlops:
    # Without the sigmoid, which keeps its output, nothing would have to be computed again.
    layer = nn.Sequential(nn.Linear(WIDTH, OUT, bias=False), nn.Sigmoid()).requires_grad_(trained)
    inputs = torch.rand(TOKENS, WIDTH, requires_grad=differentiated)
    with CountFlops() as count:
        output = checkpoint(layer, inputs, use_reentrant=False) if again else layer(inputs)
        if output.requires_grad:
            output.sum().backward()
    return count


def test_a_frozen_matrix_counts_four_and_a_trained_one_six():
    assert counted(trained=False, differentiated=False).flops == LINEAR
    assert counted(trained=False, differentiated=True).flops == 2 * LINEAR
    assert counted(trained=True, differentiated=True).flops == 3 * LINEAR


@pytest.mark.parametrize("linear", [F.linear, zero3_linear_wrap], ids=["torch", "zero3"])
def test_what_is_computed_again_is_not_the_models(linear, monkeypatch):
    monkeypatch.setattr(F, "linear", linear)  # under ZeRO-3 deepspeed puts its own there
    count = counted(trained=True, differentiated=True, again=True)
    assert (count.flops, count.recomputed) == (3 * LINEAR, LINEAR)


def test_operations_in_float32_are_known():
    with CountFlops() as count:
        for dtype, width in ((torch.float32, 3), (torch.bfloat16, 5)):
            torch.zeros(TOKENS, WIDTH, dtype=dtype) @ torch.zeros(WIDTH, width, dtype=dtype)
    assert (count.flops, count.in_fp32) == (2 * TOKENS * WIDTH * 8, 2 * TOKENS * WIDTH * 3)


def test_what_is_recomputed_within_what_is_recomputed_is_not_the_models():
    first, last = (nn.Sequential(nn.Linear(*size, bias=False), nn.Sigmoid()) for size in ((WIDTH, OUT), (OUT, WIDTH)))

    def both(x):
        return checkpoint(last, checkpoint(first, x, use_reentrant=False), use_reentrant=False)

    inputs = torch.rand(TOKENS, WIDTH, requires_grad=True)
    with CountFlops() as count:
        output = checkpoint(both, inputs, use_reentrant=False)
        assert (count.flops, count.recomputed) == (2 * LINEAR, 0)
        output.sum().backward()
    # The outer block is computed again up to the input of the last inner one, then each inner one.
    assert (count.flops, count.recomputed) == (2 * 3 * LINEAR, 3 * LINEAR)


def test_attention_on_a_cpu_is_counted_in_full():
    q, k, v = (torch.rand(2, 3, length, 8, requires_grad=True) for length in (13, 17, 17))
    with CountFlops() as count:
        output = F.scaled_dot_product_attention(q, k, v)
    assert count.flops == 2 * (2 * 2 * 3 * 13 * 17 * 8)
    with CountFlops() as count:
        output.sum().backward()
    assert count.flops >= 2 * 2 * (2 * 2 * 3 * 13 * 17 * 8)


def test_only_the_first_step_is_counted_and_others_follow_their_tokens():
    flops = ModelFlops(OneRank(size=3), wanted=True)
    for size in (4, 40):
        with flops.counting():
            torch.rand(size, WIDTH) @ torch.rand(WIDTH, OUT)
    first = flops.of(10)
    assert first == 3 * 2 * 4 * WIDTH * OUT
    assert flops.of(25) == 2.5 * first


def test_nothing_is_counted_where_nobody_asks():
    flops = ModelFlops(OneRank(size=1), wanted=False)
    with flops.counting() as mode:
        assert mode is None
    assert flops.of(10) is None
