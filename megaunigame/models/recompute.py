"""Gradients through frozen modules with recomputed activations, a few pictures at a time.

The decoder of a tokenizer keeps tens of gigabytes per large picture for its backward. Here it is a sequence of parts: the
graph keeps the input of each part, and the backward recomputes the part. Values and gradients are the same, for one more
forward; frozen modules in eval mode use no random numbers, so no random state is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input
from torch.utils.checkpoint import checkpoint

PIXELS_AT_A_TIME = 1 << 19
"""Pixels per call of a tokenizer: one picture of 720 x 720, 14 of 192 x 192."""

Part: TypeAlias = Callable[..., Tensor]
"""(x, *others) -> the next x."""


def through(parts: Iterable[Part], x: Tensor, *others: Tensor) -> Tensor:
    """`x` through consecutive frozen parts; each also reads `others`, which stay the same."""
    for part in parts:
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *others)):
            x = checkpoint(part, x, *others, use_reentrant=False, preserve_rng_state=False)
        else:
            x = part(x, *others)
    return x


def through_levels(levels: Iterable[Iterable[Part]], x: Tensor, *others: Tensor) -> Tensor:
    """The same for parts in groups: the graph keeps the input of each group, and of each part while its group is recomputed.

    Another forward, for the memory of a group. Useful when resolutions differ: the few inputs at low resolution are kept, the
    many at high resolution are not.
    """
    return through((partial(through, parts) for parts in levels), x, *others)


def in_chunks(run: Callable[..., Tensor], pixels: int, *tensors: Tensor) -> Tensor:
    """`run` on chunks of the B entries of `tensors`: as many pictures of `pixels` pixels as fit into PIXELS_AT_A_TIME.

    Chunks are the same with and without gradient, so that the same pictures give the same codes.
    """
    size = max(1, PIXELS_AT_A_TIME // pixels)
    parts = zip(*(tensor.split(size) for tensor in tensors), strict=True)
    return torch.cat([run(*part) for part in parts])


def frozen_conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """`layer(x)` (zero padding) without keeping `x`: the backward of a frozen layer needs only its shape."""
    return _FrozenConv.apply(x, layer)  # type: ignore[no-any-return]


class _FrozenConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return layer(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        options = layer.stride, layer.padding, layer.dilation, layer.groups
        return conv2d_input(ctx.shape, layer.weight, gradients[0], *options), None
