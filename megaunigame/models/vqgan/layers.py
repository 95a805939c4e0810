"""Encoder and decoder of VQGAN (arXiv 2012.09841), with the key names of the released code (CompVis/taming-transformers).

Chameleon, Emu3.5 (IBQ) and Show-o (MAGVIT-v2) publish tokenizers of these layers. Weights are frozen: a gradient
reaches the input, never a weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from megaunigame.models.recompute import Part, frozen_conv, through_levels
from megaunigame.models.shapes import GROUP_NORM_GROUPS
from megaunigame.models.vqgan import parts

EPSILON = 1e-6


@dataclass(frozen=True)
class Sizes:
    """Sizes of an encoder or of a decoder; level 0 has the resolution of the picture, each next one half of it."""

    base_channels: int
    multipliers: tuple[int, ...]
    """Width of each level, in units of `base_channels`."""
    blocks: tuple[int, ...]
    """Residual blocks of each level."""
    attention: frozenset[int]
    """Levels with an attention after every block."""
    pixels: int = 3
    """Channels of a picture."""
    latent: int = 4
    """Channels of the latent."""

    @property
    def widths(self) -> list[int]:
        return [self.base_channels * multiplier for multiplier in self.multipliers]


def attention_levels(resolution: int, at: Iterable[int], levels: int) -> frozenset[int]:
    """Levels that attend, where the configuration lists the resolutions `at` of a picture of nominal `resolution` pixels."""
    return frozenset(level for level in range(levels) if resolution // 2**level in set(at))


class ResidualBlock(nn.Module):
    """(B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.in_channels, self.out_channels = width, out
        self.norm1, self.conv1 = _norm(width), _conv(width, out, 3)
        self.norm2, self.conv2 = _norm(out), _conv(out, out, 3)
        if width != out:
            self.nin_shortcut = _conv(width, out, 1)


class CellAttention(nn.Module):
    """One head of attention over all cells (B, C, H, W) of a feature map."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (_conv(width, width, 1) for _ in range(4))


class Scaling(nn.Module):
    """Holds the convolution of a change of resolution."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.conv = _conv(width, width, 3, stride=stride, padding=2 - stride)


class Level(nn.Module):
    """Blocks of one resolution."""

    def __init__(self, width: int, out: int, blocks: int, attends: bool):
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(width if number == 0 else out, out) for number in range(blocks))
        self.attn = nn.ModuleList(CellAttention(out) for _ in range(blocks if attends else 0))


class Middle(nn.Module):
    """Blocks at the coarsest resolution, which always attend."""

    def __init__(self, width: int):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = ResidualBlock(width, width), CellAttention(width), ResidualBlock(width, width)


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) -> (B, latent, h, w), h = H / 2^(levels - 1)."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        widths = sizes.widths
        self.conv_in = _conv(sizes.pixels, sizes.base_channels, 3)
        self.down = nn.ModuleList()
        for number, (width, out) in enumerate(zip([sizes.base_channels, *widths], widths, strict=False)):
            self.down.append(Level(width, out, sizes.blocks[number], number in sizes.attention))
            if number < len(widths) - 1:
                self.down[-1].downsample = Scaling(out, stride=2)
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = _norm(widths[-1]), _conv(widths[-1], sizes.latent, 3)
        self.requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        down = [(level, _blocks(level)) for level in self.down]
        return through_levels(parts.encoder_levels(self, down, _middle(self.mid)), pixels)


class Decoder(nn.Module):
    """(B, latent, h, w) -> pictures (B, 3, H, W), not clamped."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        widths = sizes.widths
        self.conv_in = _conv(sizes.latent, widths[-1], 3)
        self.mid = Middle(widths[-1])
        levels: list[Level] = []
        for number in reversed(range(len(widths))):
            coarser = widths[min(number + 1, len(widths) - 1)]
            levels.insert(0, Level(coarser, widths[number], sizes.blocks[number], number in sizes.attention))
            if number:
                levels[0].upsample = Scaling(widths[number], stride=1)
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = _norm(widths[0]), _conv(widths[0], sizes.pixels, 3)
        self.requires_grad_(False)

    def forward(self, latents: Tensor) -> Tensor:
        up = [(level, _blocks(level)) for level in reversed(self.up)]
        return through_levels(parts.decoder_levels(self, up, _middle(self.mid)), latents)


def attend(attention: Any, x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W), the input added."""
    cells = attention.norm(x)
    query, key, value = (
        frozen_conv(layer, cells).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (attention.q, attention.k, attention.v)
    )
    seen = F.scaled_dot_product_attention(query, key, value).squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])
    return x + frozen_conv(attention.proj_out, seen.contiguous())


def _blocks(level: Any) -> list[Part]:
    """Residual blocks of one level, each followed by attention where the level has it."""
    blocks: list[Part] = []
    for number, block in enumerate(level.block):
        blocks.append(partial(parts.residual, block))
        if level.attn:
            blocks.append(partial(attend, level.attn[number]))
    return blocks


def _middle(middle: Any) -> list[Part]:
    attention = partial(attend, middle.attn_1)
    return [partial(parts.residual, middle.block_1), attention, partial(parts.residual, middle.block_2)]


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUP_NORM_GROUPS, width, eps=EPSILON)


def _conv(width: int, out: int, kernel: int, stride: int = 1, padding: int | None = None) -> nn.Conv2d:
    return nn.Conv2d(width, out, kernel, stride=stride, padding=kernel // 2 if padding is None else padding)
