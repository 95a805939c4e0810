"""The layers of VQGAN-like tokenizers as parts (`models.recompute`), for layers with the usual names: `block.conv1`,
`level.downsample.conv`, `norm_out`.

A change of resolution is one part with the block on its finer side, which keeps the inputs of parts and levels small. A part
maps (B, C, H, W), and in decoders whose norms are modulated also the codes (B, E, h, w), to (B, C', H', W').
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from megaunigame.models.recompute import Part, frozen_conv
from megaunigame.models.vqgan.sliced_norm import norm_swish


def encoder_levels(layers: Any, down: Any, middle: list[Part]) -> list[list[Part]]:
    """Parts (B, 3, H, W) -> (B, C, h, w), by resolution, of an encoder with `conv_in`, `norm_out` and `conv_out`.

    `down`: for each level its module, which may have `downsample`, and the parts of its blocks. `middle`: parts after them.
    """
    levels: list[list[Part]] = []
    for level, (*others, last) in down:
        levels.append([*others, both(last, partial(shrink, level)) if hasattr(level, "downsample") else last])
    levels[0][0] = both(partial(conv, layers.conv_in), levels[0][0])
    levels[-1] += [*middle, partial(finish, layers)]
    return levels


def decoder_levels(layers: Any, up: Any, middle: list[Part]) -> list[list[Part]]:
    """Parts (B, C, h, w) -> (B, 3, H, W), by resolution, of a decoder; `up`: as `down` above, the coarsest level first."""
    levels: list[list[Part]] = [[partial(conv, layers.conv_in), *middle]]
    change: Part = unchanged
    for level, (first, *others) in up:
        levels.append([both(change, first), *others])
        change = partial(grow, level) if hasattr(level, "upsample") else unchanged
    levels[-1].append(partial(finish, layers))
    return levels


def both(first: Part, second: Part) -> Part:
    """One part out of two."""
    return lambda x, *codes: second(first(x, *codes), *codes)


def residual(block: Any, x: Tensor, *codes: Tensor) -> Tensor:
    """A residual block, with a shortcut where it changes the width."""
    # The shortcut comes first, so that its backward comes last, when the gradients of the other branch are freed.
    shortcut = frozen_conv(block.nin_shortcut, x) if block.in_channels != block.out_channels else x
    x = frozen_conv(block.conv1, norm_swish(block.norm1, x, *codes))
    return shortcut + frozen_conv(block.conv2, norm_swish(block.norm2, x, *codes))


def conv(layer: Any, x: Tensor, *_: Tensor) -> Tensor:
    return frozen_conv(layer, x)


def shrink(level: Any, x: Tensor, *_: Tensor) -> Tensor:
    """Half the resolution, padded by one at the right and the bottom."""
    return frozen_conv(level.downsample.conv, F.pad(x, (0, 1, 0, 1)))


def grow(level: Any, x: Tensor, *_: Tensor) -> Tensor:
    """Twice the resolution."""
    return frozen_conv(level.upsample.conv, F.interpolate(x, scale_factor=2.0, mode="nearest"))


def finish(layers: Any, x: Tensor, *codes: Tensor) -> Tensor:
    return frozen_conv(layers.conv_out, norm_swish(layers.norm_out, x, *codes))


def unchanged(x: Tensor, *_: Tensor) -> Tensor:
    return x
