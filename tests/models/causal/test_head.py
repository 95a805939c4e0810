"""The sliced cross-entropy and the sliced softmax against the plain ones."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from megaunigame.engine.live_bytes import LiveBytes
from megaunigame.models.causal import head as token_head
from megaunigame.models.causal.head import TokenHead
from megaunigame.step.inputs import IGNORE

WIDTH, VOCABULARY, POSITIONS = 12, 53, 9


def head_and_rows(dtype, seed=0, bias=False):
    torch.manual_seed(seed)
    head = TokenHead(WIDTH, VOCABULARY, bias)
    if bias:
        head.bias.data = 2 * torch.randn(VOCABULARY)
    head.weight.data.mul_(6)  # logits far from equal
    hidden = torch.randn(POSITIONS, WIDTH)
    labels = torch.randint(VOCABULARY, (POSITIONS,))
    labels[[2, 5]] = IGNORE
    return head.to(dtype), hidden.to(dtype).requires_grad_(), labels


def gradients(losses, head, hidden):
    """Of a sum in which every position has another weight."""
    return torch.autograd.grad((losses * torch.arange(1.0, POSITIONS + 1)).sum(), [hidden, *head.parameters()])


def test_a_head_without_bias_has_the_names_of_a_plain_one():
    assert [name for name, _ in TokenHead(2, 3).named_parameters()] == ["weight"]
    assert [name for name, _ in TokenHead(2, 3, bias=True).named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("elements", [1, 7 * POSITIONS, 1 << 25])
def test_losses_and_gradients_are_those_of_the_plain_loss(monkeypatch, elements, bias):
    monkeypatch.setattr(token_head, "SLICE_ELEMENTS", elements)
    head, hidden, labels = head_and_rows(torch.float32, bias=bias)
    assert torch.equal(head(hidden), F.linear(hidden, head.weight, head.bias))
    torch.testing.assert_close(head(hidden, ids=slice(5, 9)), head(hidden)[:, 5:9])
    plain = F.cross_entropy(head(hidden), labels, ignore_index=IGNORE, reduction="none")
    scored = head(hidden, labels)
    torch.testing.assert_close(scored.losses, plain, rtol=1e-6, atol=1e-6)
    assert torch.equal(scored.likeliest, head(hidden).argmax(-1))
    for ours, theirs in zip(gradients(scored.losses, head, hidden), gradients(plain, head, hidden), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6 * theirs.abs().max().item())


def exact_copy(head, hidden):
    """The same values in float32."""
    exact = TokenHead(*reversed(head.weight.shape), bias=head.bias is not None)
    exact.load_state_dict({name: value.float() for name, value in head.state_dict().items()})
    return exact, hidden.detach().float().requires_grad_()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("elements", [7 * WIDTH, 1 << 25])
def test_bfloat16_logits_are_not_rounded(monkeypatch, elements, bias):
    monkeypatch.setattr(token_head, "SLICE_ELEMENTS", elements)
    head, hidden, labels = head_and_rows(torch.bfloat16, bias=bias)
    exact_head, exact_hidden = exact_copy(head, hidden)
    exact = F.cross_entropy(exact_head(exact_hidden), labels, ignore_index=IGNORE, reduction="none")
    rounded = F.cross_entropy(head(hidden).float(), labels, ignore_index=IGNORE, reduction="none")
    ours = head(hidden, labels).losses
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-6)
    assert (rounded - exact).abs().max() > 1e-3, "logits in bfloat16 would show"
    truth = gradients(exact, exact_head, exact_hidden)
    plain = gradients(rounded, head, hidden)
    for mine, other, right in zip(gradients(ours, head, hidden), plain, truth, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - right).norm() <= min(0.004 * right.norm(), 1.1 * (other.float() - right).norm())


def test_of_equal_logits_the_first_is_the_likeliest(monkeypatch):
    monkeypatch.setattr(token_head, "SLICE_ELEMENTS", 10 * WIDTH)
    head, hidden, labels = head_and_rows(torch.float32)
    for values in (head.weight.data, hidden.data):  # whole numbers: else equal rows have other last bits on some CPUs
        values.copy_((8 * values).round())
    head.weight.data[[12, 13, 47]] = head.weight.data[8] = 20 * hidden.detach()[0]
    expected = head(hidden).argmax(-1)
    assert expected[0] == 8 and torch.equal(head(hidden, labels).likeliest, expected)
    among = head(hidden, ids=slice(11, 50), table=torch.zeros(39, 2)).likeliest
    assert among[0] == 1 and torch.equal(among, head(hidden)[:, 11:50].argmax(-1))


def plain_mean(head, hidden, ids, table):
    return head(hidden)[:, ids].float().softmax(-1) @ table


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("elements", [1, 7 * WIDTH, 1 << 25])
def test_the_mean_row_of_a_table_and_its_gradients_are_those_of_the_plain_softmax(monkeypatch, elements, bias):
    monkeypatch.setattr(token_head, "SLICE_ELEMENTS", elements)
    head, hidden, _ = head_and_rows(torch.float32, bias=bias)
    ids, table = slice(5, 46), torch.randn(41, 3)
    expected, plain = head(hidden, ids=ids, table=table), plain_mean(head, hidden, ids, table)
    assert torch.equal(expected.likeliest, head(hidden)[:, ids].argmax(-1))
    torch.testing.assert_close(expected.mean, plain, rtol=1e-5, atol=1e-5)
    weights = torch.randn(POSITIONS, 3)
    ours = torch.autograd.grad((expected.mean * weights).sum(), [hidden, *head.parameters()])
    theirs = torch.autograd.grad((plain * weights).sum(), [hidden, *head.parameters()])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=2e-6 * other.abs().max().item())
    assert torch.equal(ours[1][:5], torch.zeros(5, WIDTH)) and torch.equal(ours[1][46:], torch.zeros(7, WIDTH))


def test_the_mean_row_in_bfloat16_is_that_of_logits_in_float32():
    head, hidden, _ = head_and_rows(torch.bfloat16)
    ids, table = slice(5, 46), torch.randn(41, 3)
    exact_head, exact_hidden = exact_copy(head, hidden)
    exact = plain_mean(exact_head, exact_hidden, ids, table)
    mean = head(hidden, ids=ids, table=table).mean
    torch.testing.assert_close(mean, exact, rtol=1e-5, atol=1e-5)
    assert (plain_mean(head, hidden, ids, table) - exact).abs().max() > 1e-3
    (mine,) = torch.autograd.grad(mean.square().sum(), [hidden])
    (right,) = torch.autograd.grad(exact.square().sum(), [exact_hidden])
    assert mine.dtype == torch.bfloat16 and (mine.float() - right).norm() <= 0.01 * right.norm()


@pytest.mark.parametrize("arguments", ["labels", "table"])
def test_the_weight_may_be_taken_away_between_forward_and_backward(arguments):
    """As an engine does that partitions it: what the graph keeps is the parameter, not the values it had."""
    found = []
    for partitioned in (False, True):
        head, hidden, labels = head_and_rows(torch.float32)
        torch.manual_seed(1)
        given = {"labels": labels} if arguments == "labels" else {"ids": slice(5, 46), "table": torch.randn(41, 3)}
        scored = head(hidden, **given)
        result = (scored.losses if arguments == "labels" else scored.mean).square().sum()
        if partitioned:
            values, whole = head.weight.data.clone(), weakref.ref(head.weight.untyped_storage())
            head.weight.data = torch.empty(0)
            assert whole() is None, "nothing else may keep the whole weight"
            head.weight.data = values
        result.backward()
        found.append((hidden.grad, head.weight.grad))
    for plain, other in zip(*found, strict=True):
        assert torch.equal(plain, other) and plain.abs().max() > 0


@pytest.mark.parametrize("trained", [False, True])
def test_4096_positions_and_131072_codes_take_less_than_a_gigabyte(trained):
    with torch.device("meta"):
        head = TokenHead(1024, 140000).to(torch.bfloat16).requires_grad_(trained)
        hidden = torch.zeros(4096, 1024, dtype=torch.bfloat16, requires_grad=True)
        table = torch.zeros(131072, 256)
        with LiveBytes() as live:
            head(hidden, ids=slice(8000, 139072), table=table).mean.sum().backward()
    assert live.peak < 1e9


@pytest.mark.parametrize(("width", "dtype", "trained"), [(64, torch.float32, True), (5120, torch.bfloat16, False)])
def test_the_loss_over_a_vocabulary_of_codes_takes_a_tenth_of_the_memory(width, dtype, trained):
    """4,096 positions, the 282,926 tokens of Emu3.5. A head as wide as its own is frozen: its gradient is not the loss's."""
    peaks = []
    for sliced in (False, True):
        with torch.device("meta"):
            head = TokenHead(width, 282_926).to(dtype).requires_grad_(trained)
            hidden = torch.zeros(4096, width, dtype=dtype, requires_grad=True)
            labels = torch.zeros(4096, dtype=torch.long)
            with LiveBytes() as live:
                if sliced:
                    losses = head(hidden, labels).losses
                else:
                    losses = F.cross_entropy(head(hidden).float(), labels, reduction="none")
                losses.sum().backward()
        peaks.append(live.peak)
    assert peaks[0] > 2 * 4096 * 282_926 * 4 and peaks[1] <= 0.1 * peaks[0], peaks


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
