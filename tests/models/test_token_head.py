"""The sliced cross-entropy against the plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from megaunigame.models import token_head
from megaunigame.models.token_head import TokenHead
from megaunigame.passes import IGNORE

WIDTH, VOCABULARY, POSITIONS = 12, 53, 9


def head_and_rows(dtype, seed=0):
    torch.manual_seed(seed)
    head = TokenHead(WIDTH, VOCABULARY)
    head.weight.data.mul_(6)  # logits far from equal
    hidden = torch.randn(POSITIONS, WIDTH)
    labels = torch.randint(VOCABULARY, (POSITIONS,))
    labels[[2, 5]] = IGNORE
    return head.to(dtype), hidden.to(dtype).requires_grad_(), labels


def gradients(losses, head, hidden):
    """Of a sum in which every position has a weight of its own."""
    return torch.autograd.grad((losses * torch.arange(1.0, POSITIONS + 1)).sum(), [hidden, head.weight])


@pytest.mark.parametrize("elements", [1, 7 * POSITIONS, 1 << 25])
def test_losses_and_gradients_are_those_of_the_plain_loss(monkeypatch, elements):
    monkeypatch.setattr(token_head, "SLICE_ELEMENTS", elements)
    head, hidden, labels = head_and_rows(torch.float32)
    plain = F.cross_entropy(head(hidden), labels, ignore_index=IGNORE, reduction="none")
    scored = head(hidden, labels)
    torch.testing.assert_close(scored.losses, plain, rtol=1e-6, atol=1e-6)
    assert torch.equal(scored.likeliest, head(hidden).argmax(-1))
    for ours, theirs in zip(gradients(scored.losses, head, hidden), gradients(plain, head, hidden), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6 * theirs.abs().max().item())


def test_bfloat16_is_as_near_to_the_truth_as_the_plain_loss():
    head, hidden, labels = head_and_rows(torch.bfloat16)
    exact_head = TokenHead(WIDTH, VOCABULARY)
    exact_head.weight.data.copy_(head.weight.float())
    exact_hidden = hidden.detach().float().requires_grad_()
    exact = F.cross_entropy(exact_head(exact_hidden), labels, ignore_index=IGNORE, reduction="none")
    plain = F.cross_entropy(head(hidden).float(), labels, ignore_index=IGNORE, reduction="none")
    ours = head(hidden, labels).losses
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)  # both round the logits
    truth = gradients(exact, exact_head, exact_hidden)
    for mine, other, right in zip(gradients(ours, head, hidden), gradients(plain, head, hidden), truth, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - right).norm() <= 1.1 * (other.float() - right).norm()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 100), st.floats(0.1, 60.0), st.integers(0, 2**16))
def test_any_shape_and_scale(positions, vocabulary, elements, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    head = TokenHead(3, vocabulary)
    head.weight.data = torch.randn(vocabulary, 3, generator=generator) * scale
    hidden = torch.randn(positions, 3, generator=generator)
    labels = torch.randint(vocabulary, (positions,), generator=generator)
    token_head.SLICE_ELEMENTS, kept = elements, token_head.SLICE_ELEMENTS
    try:
        scored = head(hidden, labels)
    finally:
        token_head.SLICE_ELEMENTS = kept
    expected = F.cross_entropy(head(hidden), labels, reduction="none")
    torch.testing.assert_close(scored.losses, expected, rtol=1e-4, atol=1e-4)


def test_a_frozen_weight_gets_no_gradient_and_the_states_do():
    head, hidden, labels = head_and_rows(torch.float32)
    head.requires_grad_(False)
    head(hidden, labels).losses.sum().backward()
    assert head.weight.grad is None and hidden.grad.abs().max() > 0
    assert torch.equal(hidden.grad[[2, 5]], torch.zeros(2, WIDTH))


def test_a_range_of_tokens_has_their_logits():
    head, hidden, _ = head_and_rows(torch.float32)
    torch.testing.assert_close(head(hidden, ids=slice(7, 20)), head(hidden)[:, 7:20])
