"""Norm and swish of the vision tokenizer, a few channels at a time.

The tokenizer has 512 channels at full resolution: one such tensor of a picture of 720 x 720 is 1.06 GB in float32, and separate
norm, modulation and swish hold five of them at once, without any graph. Groups of channels are normalized independently, so
each slice of groups can be computed alone, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.emu3.modeling_emu3 import Emu3VQVAESpatialNorm

SLICE_ELEMENTS = 1 << 23
"""Elements normalized at a time (at least one group of channels): 32 MiB in float32."""


def norm_swish(norm: nn.GroupNorm | Emu3VQVAESpatialNorm, x: Tensor, codes: Tensor | None = None) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W): swish(norm(x)), modulated by `codes` (B, E, h, w) if the norm is spatial.

    Differentiable in `x` and `codes`; the norm is frozen and gets no gradient.
    """
    if codes is not None:
        codes = F.interpolate(codes, size=x.shape[-2:], mode="nearest")
    return _NormSwish.apply(norm, x, codes)  # type: ignore[no-any-return]


class _NormSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, norm: nn.Module, x: Tensor, codes: Tensor | None) -> Tensor:
        ctx.norm = norm
        ctx.save_for_backward(x, codes)
        result = torch.empty_like(x)
        for channels in _slices(norm, x):
            result[:, channels] = _slice_of(norm, channels, x[:, channels], codes)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor | None]:
        x, codes = ctx.saved_tensors
        into_x, into_codes = torch.empty_like(x), None if codes is None else torch.zeros_like(codes)
        for channels in _slices(ctx.norm, x):
            inputs = [each.detach().requires_grad_() for each in (x[:, channels], codes) if each is not None]
            with torch.enable_grad():
                result = _slice_of(ctx.norm, channels, *inputs)
            into = torch.autograd.grad(result, inputs, gradients[0][:, channels])
            into_x[:, channels] = into[0]
            if into_codes is not None:
                into_codes += into[1]
        return None, into_x, into_codes


def _slice_of(norm: nn.Module, channels: slice, x: Tensor, codes: Tensor | None = None) -> Tensor:
    """(B, c, H, W) of `channels` -> (B, c, H, W), with the arithmetic of transformers' layers."""
    plain = _plain(norm)
    groups = x.shape[1] * plain.num_groups // plain.num_channels
    y = F.group_norm(x, groups, plain.weight[channels], plain.bias[channels], plain.eps)
    if codes is not None:
        assert isinstance(norm, Emu3VQVAESpatialNorm)
        y = y * _one_by_one(norm.conv_y, channels, codes) + _one_by_one(norm.conv_b, channels, codes)
    return y * torch.sigmoid(y)


def _one_by_one(layer: nn.Conv2d, channels: slice, codes: Tensor) -> Tensor:
    """Some output channels of a 1 x 1 convolution."""
    return F.conv2d(codes, layer.weight[channels], None if layer.bias is None else layer.bias[channels])


def _slices(norm: nn.Module, x: Tensor) -> Iterator[slice]:
    """Channels of whole groups."""
    plain = _plain(norm)
    of_group = plain.num_channels // plain.num_groups
    size = of_group * max(1, SLICE_ELEMENTS // (of_group * x[:, 0].numel()))
    for start in range(0, plain.num_channels, size):
        yield slice(start, min(start + size, plain.num_channels))


def _plain(norm: nn.Module) -> nn.GroupNorm:
    return norm.norm_layer if isinstance(norm, Emu3VQVAESpatialNorm) else norm  # type: ignore[return-value]
