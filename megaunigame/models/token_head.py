"""The head of a language model, and its loss without all logits in memory.

A vocabulary of 184,622 tokens makes 3 GB of float32 logits out of 4,096 positions, and the loss holds them three times over:
the logits, their softmax, its gradient. Here the vocabulary is gone through slice by slice, in the forward for the losses and
again in the backward, where every slice of logits is computed anew. That is a third more arithmetic in the head, for memory
that no longer grows with the vocabulary. Slices of the vocabulary rather than of the positions: the gradient of each weight
is then one product, rounded once, and only the (small) gradient of the hidden states is a sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megaunigame.passes import IGNORE

SLICE_ELEMENTS = 1 << 25
"""Logits held at a time: 128 MiB in float32."""


class Scored(NamedTuple):
    """What the head says about labelled positions. A tuple, because the engine hooks the tensors of tuples."""

    losses: Tensor
    """(P,) float32: cross-entropy of each position; 0 where the label is IGNORE."""
    likeliest: Tensor
    """(P,) int64: the token of the largest logit."""


class TokenHead(nn.Linear):
    """A linear layer without bias from hidden states to the vocabulary; its parameter is called as in transformers."""

    def __init__(self, width: int, vocabulary: int):
        super().__init__(width, vocabulary, bias=False)

    def forward(  # type: ignore[override]
        self, hidden: Tensor, labels: Tensor | None = None, ids: slice | None = None
    ) -> Tensor | Scored:
        """Logits (..., V) of hidden states (..., D); of the tokens `ids` alone when given.

        With `labels` (P,), the losses of hidden states (P, D) instead. All of it is in this forward, because a partitioned
        weight is whole nowhere else.
        """
        if labels is not None:
            return Scored(*_SlicedCrossEntropy.apply(hidden, self.weight, labels))
        return F.linear(hidden, self.weight if ids is None else self.weight[ids])


class _SlicedCrossEntropy(torch.autograd.Function):
    """(P, D) hidden states, (V, D) weight, (P,) labels -> (P,) losses, (P,) likeliest tokens."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        positions = len(hidden)
        total = hidden.new_full((positions,), -torch.inf, dtype=torch.float32)
        largest, own = total.clone(), torch.zeros_like(total)
        likeliest = labels.new_zeros(positions)
        for ids in _slices(positions, len(weight)):
            logits = _logits(hidden, weight[ids])
            top, place = logits.max(1)
            likeliest = torch.where(top > largest, place + ids.start, likeliest)
            largest = torch.maximum(largest, top)
            total = torch.logaddexp(total, logits.logsumexp(1))
            inside, column = _own_column(labels, ids)
            own = torch.where(inside, logits.gather(1, column).squeeze(1), own)
        ctx.save_for_backward(hidden, weight, labels, total)
        ctx.mark_non_differentiable(likeliest)
        return torch.where(labels == IGNORE, 0.0, total - own), likeliest

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, labels, total = ctx.saved_tensors
        into_hidden, into_weight = ctx.needs_input_grad[:2]
        factor = torch.where(labels == IGNORE, 0.0, gradients[0]).unsqueeze(1)
        hidden_gradient = torch.zeros_like(hidden, dtype=torch.float32) if into_hidden else None
        weight_gradient = torch.empty_like(weight) if into_weight else None
        for ids in _slices(len(hidden), len(weight)):
            shares = _logits(hidden, weight[ids]).sub_(total.unsqueeze(1)).exp_()
            inside, column = _own_column(labels, ids)
            shares.scatter_add_(1, column, -inside.float().unsqueeze(1))
            shares = shares.mul_(factor).to(hidden.dtype)
            if hidden_gradient is not None:
                hidden_gradient += shares @ weight[ids]
            if weight_gradient is not None:
                weight_gradient[ids] = shares.T @ hidden
        return None if hidden_gradient is None else hidden_gradient.to(hidden.dtype), weight_gradient, None


def _slices(positions: int, vocabulary: int) -> Iterator[slice]:
    """The vocabulary in pieces of at most SLICE_ELEMENTS logits, all positions together."""
    size = max(1, SLICE_ELEMENTS // max(1, positions))
    for start in range(0, vocabulary, size):
        yield slice(start, min(start + size, vocabulary))


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """(P, size) float32, a tensor of its own."""
    return (hidden @ weight.T).float()


def _own_column(labels: Tensor, ids: slice) -> tuple[Tensor, Tensor]:
    """(P,) whether the label is among `ids`, and (P, 1) its column there (any column where it is not)."""
    inside = (labels >= ids.start) & (labels < ids.stop)
    return inside, (labels - ids.start).clamp(0, ids.stop - ids.start - 1).unsqueeze(1)
