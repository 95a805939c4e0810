"""Collectives of ranks that share one tensor, differentiable.

Every rank has a loss of its own, and the engine adds up the gradients of all. So the gradient of what a collective reads is
that of the sum of all losses: it comes back by the transposed collective. Where all ranks have the same tensor, only the sum
over their copies of its gradient means something: `part_of` divides that sum evenly, so each copy has the gradient that one
process would give it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, autograd

from megaunigame.parallel.ranks import Ranks


def exchange(parts: Tensor, ranks: Ranks) -> Tensor:
    """(N, ...): part n goes to rank n -> (N, ...): what came from each rank."""
    return _Exchange.apply(parts, ranks)  # type: ignore[no-any-return]


def part_of(whole: Tensor, ranks: Ranks) -> Tensor:
    """(N, ...), the same on all ranks -> (...): the part of this rank."""
    return _Part.apply(whole, ranks)  # type: ignore[no-any-return]


def collect(part: Tensor, ranks: Ranks) -> Tensor:
    """(...) -> (N, ...): the part of every rank."""
    return _Collected.apply(part, ranks)  # type: ignore[no-any-return]


def mean(value: Tensor, ranks: Ranks) -> Tensor:
    """The mean over the ranks, on all of them."""
    return _Mean.apply(value, ranks)  # type: ignore[no-any-return]


class _Exchange(autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.exchange(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.ranks.exchange(gradient), None


class _Part(autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return whole[ranks.rank].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.ranks.collect(gradient).div_(ctx.ranks.size), None


class _Collected(autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.collect(part)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.ranks.sum_parts(gradient), None


class _Mean(autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.all_reduce_sum(value.clone()).div_(ranks.size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.ranks.all_reduce_sum(gradient.clone()).div_(ctx.ranks.size), None
