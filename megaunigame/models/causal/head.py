"""The head of a language model, with a loss and means computed without all logits in memory.

With a vocabulary of 184,622 tokens, 4,096 positions have 3 GB of float32 logits, and the loss holds them three times: the
logits, their softmax, its gradient. Here the vocabulary is processed slice by slice, in the forward and again in the
backward, which recomputes every slice of logits. That is a third more arithmetic in the head, for memory that does not grow
with the vocabulary. Slices of the vocabulary, not of the positions: the gradient of each weight is then one product,
rounded once, and only the (small) gradient of the hidden states is a sum.

Logits are float32 products of hidden states and weights of any dtype. A logit of 20 rounded to bfloat16 is off by up to 0.06,
and so would be its loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megaunigame.step.inputs import IGNORE

SLICE_ELEMENTS = 1 << 25
"""Logits held at a time, and weights they are computed from: 128 MiB in float32."""


class TokenScores(NamedTuple):
    """Losses and predictions at labeled positions. A tuple, because the engine hooks the tensors of tuples."""

    losses: Tensor
    """(P,) float32: cross-entropy of each position; 0 where the label is IGNORE."""
    likeliest: Tensor
    """(P,) int64: the token of the largest logit."""


class ExpectedRows(NamedTuple):
    """Expectation at positions over a table with one row per token."""

    likeliest: Tensor
    """(P,) int64: the token of the largest logit, counted from the first of `ids`."""
    mean: Tensor
    """(P, C) float32: mean row of the table, weighted by the softmax over `ids`."""


class TokenHead(nn.Linear):
    """A linear layer from hidden states to the vocabulary; its parameters are called as in transformers."""

    def __init__(self, width: int, vocabulary: int, bias: bool = False):
        super().__init__(width, vocabulary, bias=bias)

    def forward(  # type: ignore[override]
        self, hidden: Tensor, labels: Tensor | None = None, ids: slice | None = None, table: Tensor | None = None
    ) -> Tensor | TokenScores | ExpectedRows:
        """Logits (..., V) of hidden states (..., D); of the tokens `ids` alone when given.

        Instead of logits: with `labels` (P,), the losses of hidden states (P, D); with `table` (V, C), a constant, the
        expectation at hidden states (P, D), with its gradient. All in this forward, because a partitioned weight is gathered
        only here.
        """
        if labels is not None:
            return TokenScores(*_SlicedCrossEntropy.apply(hidden, self.weight, self.bias, labels))
        ids = slice(0, len(self.weight)) if ids is None else ids
        if table is not None:
            return ExpectedRows(*_SlicedMean.apply(hidden, self.weight, self.bias, ids, table))
        return F.linear(hidden, self.weight[ids], None if self.bias is None else self.bias[ids])


class _SlicedCrossEntropy(torch.autograd.Function):
    """(P, D) hidden states, (V, D) weight, (V,) bias or None, (P,) labels -> (P,) losses, (P,) likeliest tokens."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
        positions = len(hidden)
        total = hidden.new_full((positions,), -torch.inf, dtype=torch.float32)
        largest, own = total.clone(), torch.zeros_like(total)
        likeliest = labels.new_zeros(positions)
        for ids in _slices(hidden, slice(0, len(weight))):
            logits = _logits(hidden, weight, bias, ids)
            top, place = logits.max(1)
            likeliest = torch.where(top > largest, place + ids.start, likeliest)
            largest = torch.maximum(largest, top)
            total = torch.logaddexp(total, logits.logsumexp(1))
            inside, column = _own_column(labels, ids)
            own = torch.where(inside, logits.gather(1, column).squeeze(1), own)
        ctx.save_for_backward(hidden, weight, bias, labels, total)
        ctx.mark_non_differentiable(likeliest)
        return torch.where(labels == IGNORE, 0.0, total - own), likeliest

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        hidden, weight, bias, labels, total = ctx.saved_tensors
        into_hidden, into_weight, into_bias = ctx.needs_input_grad[:3]
        factor = torch.where(labels == IGNORE, 0.0, gradients[0]).unsqueeze(1)
        hidden_gradient = torch.zeros_like(hidden, dtype=torch.float32) if into_hidden else None
        weight_gradient = torch.empty_like(weight) if into_weight else None
        bias_gradient = torch.empty_like(bias) if into_bias else None
        for ids in _slices(hidden, slice(0, len(weight))):
            gradient = _logits(hidden, weight, bias, ids).sub_(total.unsqueeze(1)).exp_()  # of the logits: probabilities first
            inside, column = _own_column(labels, ids)
            gradient.scatter_add_(1, column, -inside.float().unsqueeze(1))
            gradient = gradient.mul_(factor)
            if bias_gradient is not None:
                bias_gradient[ids] = gradient.sum(0)
            gradient = gradient.to(hidden.dtype)
            if hidden_gradient is not None:
                hidden_gradient += _product(gradient, weight[ids])
            if weight_gradient is not None:
                weight_gradient[ids] = gradient.T @ hidden
        into = None if hidden_gradient is None else hidden_gradient.to(hidden.dtype)
        return into, weight_gradient, bias_gradient, None


class _SlicedMean(torch.autograd.Function):
    """(P, D) hidden states, (V, D) weight, (V,) bias or None, n token ids, (n, C) table -> (P,) likeliest, (P, C) mean rows."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: slice, table: Tensor
    ) -> tuple[Tensor, Tensor]:
        table = table.float()
        largest = hidden.new_full((len(hidden), 1), -torch.inf, dtype=torch.float32)
        total, mean = torch.zeros_like(largest), table.new_zeros(len(hidden), table.shape[1])
        likeliest = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        for part in _slices(hidden, ids):
            logits = _logits(hidden, weight, bias, part)
            top, place = logits.max(1, keepdim=True)
            first = part.start - ids.start
            likeliest = torch.where(top > largest, place + first, likeliest.unsqueeze(1)).squeeze(1)
            # Sums so far are relative to the largest logit so far.
            higher = torch.maximum(largest, top)
            grown, kept = logits.sub_(higher).exp_(), (largest - higher).exp()
            total = total * kept + grown.sum(1, keepdim=True)
            mean = mean * kept + grown @ table[first : first + grown.shape[1]]
            largest = higher
        mean = mean / total
        ctx.ids = ids
        ctx.save_for_backward(hidden, weight, bias, table, mean, largest + total.log())
        ctx.mark_non_differentiable(likeliest)
        return likeliest, mean

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight, bias, table, mean, total = ctx.saved_tensors
        into_hidden, into_weight, into_bias = ctx.needs_input_grad[:3]
        gradient = gradients[1]
        center = (gradient * mean).sum(1, keepdim=True)
        hidden_gradient = torch.zeros_like(hidden, dtype=torch.float32) if into_hidden else None
        weight_gradient = torch.zeros_like(weight) if into_weight else None
        bias_gradient = torch.zeros_like(bias) if into_bias else None
        for part in _slices(hidden, ctx.ids):
            first = part.start - ctx.ids.start
            probabilities = _logits(hidden, weight, bias, part).sub_(total).exp_()
            products = gradient @ table[first : first + probabilities.shape[1]].T
            into_logits = probabilities.mul_(products.sub_(center))
            if bias_gradient is not None:
                bias_gradient[part] = into_logits.sum(0)
            into_logits = into_logits.to(hidden.dtype)
            if hidden_gradient is not None:
                hidden_gradient += _product(into_logits, weight[part])
            if weight_gradient is not None:
                weight_gradient[part] = into_logits.T @ hidden
        into = None if hidden_gradient is None else hidden_gradient.to(hidden.dtype)
        return into, weight_gradient, bias_gradient, None, None


def _slices(hidden: Tensor, ids: slice) -> Iterator[slice]:
    """`ids` in pieces of at most SLICE_ELEMENTS logits of all positions (P, D), and as many weights."""
    size = max(1, SLICE_ELEMENTS // max(1, *hidden.shape))
    for start in range(ids.start, ids.stop, size):
        yield slice(start, min(start + size, ids.stop))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: slice) -> Tensor:
    """(P, size) float32 logits of the tokens `ids`, safe to change in place."""
    logits = _product(hidden, weight[ids].T)
    return logits if bias is None else logits.add_(bias[ids])


def _product(left: Tensor, right: Tensor) -> Tensor:
    """(n, k) @ (k, m) in float32, not rounded to the dtype of the factors."""
    # Not on the CPU, which has no such product, nor on ROCm, where it was not tested.
    if left.dtype.itemsize == 2 and left.device.type != "cpu" and torch.version.hip is None:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _own_column(labels: Tensor, ids: slice) -> tuple[Tensor, Tensor]:
    """(P,) whether the label is among `ids`, and (P, 1) its column there (any column where it is not)."""
    inside = (labels >= ids.start) & (labels < ids.stop)
    return inside, (labels - ids.start).clamp(0, ids.stop - ids.start - 1).unsqueeze(1)
