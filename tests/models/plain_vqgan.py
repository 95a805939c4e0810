"""Encoder and decoder of VQGAN written down plainly: nothing recomputed, nothing in slices. A reference for `models.vqgan`."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from megaunigame.models.vqgan.layers import Decoder, Encoder, Sizes, attention_levels

ENCODER = Sizes(32, (1, 3, 2), (1, 2, 1), attention_levels(24, [12, 6], 3), latent=5)
DECODER = Sizes(32, (2, 1, 3), (2, 1, 3), attention_levels(24, [24, 6], 3), latent=5)
"""Every level differs from its neighbors in width, blocks or attention."""


def plain_encoder() -> Encoder:
    return Encoder(ENCODER)


def plain_decoder() -> Decoder:
    return Decoder(DECODER)


def active(norm, x):
    return F.silu(F.group_norm(x, 32, norm.weight, norm.bias, 1e-6))


def residual(block, x):
    y = block.conv2(active(block.norm2, block.conv1(active(block.norm1, x))))
    return y + (block.nin_shortcut(x) if hasattr(block, "nin_shortcut") else x)


def attention(layer, x):
    cells = F.group_norm(x, 32, layer.norm.weight, layer.norm.bias, 1e-6)
    q, k, v = (each(cells).flatten(2).transpose(1, 2) for each in (layer.q, layer.k, layer.v))
    seen = (q @ k.transpose(1, 2) * q.shape[2] ** -0.5).softmax(-1) @ v
    return x + layer.proj_out(seen.transpose(1, 2).view_as(x))


def level(layers, x):
    for number, block in enumerate(layers.block):
        x = residual(block, x)
        if len(layers.attn):
            x = attention(layers.attn[number], x)
    return x


def middle(layers, x):
    return residual(layers.block_2, attention(layers.attn_1, residual(layers.block_1, x)))


def encoded(layers: Encoder, pixels: torch.Tensor) -> torch.Tensor:
    x = layers.conv_in(pixels)
    for number, each in enumerate(layers.down):
        x = level(each, x)
        if number < len(layers.down) - 1:
            x = F.conv2d(F.pad(x, (0, 1, 0, 1)), each.downsample.conv.weight, each.downsample.conv.bias, stride=2)
    return layers.conv_out(active(layers.norm_out, middle(layers.mid, x)))


def decoded(layers: Decoder, latents: torch.Tensor) -> torch.Tensor:
    x = middle(layers.mid, layers.conv_in(latents))
    for number in reversed(range(len(layers.up))):
        x = level(layers.up[number], x)
        if number:
            x = layers.up[number].upsample.conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2))
    return layers.conv_out(active(layers.norm_out, x))
