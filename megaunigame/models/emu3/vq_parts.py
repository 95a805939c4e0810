"""The convolutional layers of the vision tokenizer as parts, grouped by resolution.

The layers and their order are transformers'. A change of resolution is one part with the block on its finer side, which keeps
the inputs of parts and levels small.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.models.emu3.modeling_emu3 import Emu3VQVAEDecoder, Emu3VQVAEEncoder

from megaunigame.models.emu3.sliced_norm import norm_swish
from megaunigame.models.recompute import Part, frozen_conv


def encoder_levels(layers: Emu3VQVAEEncoder) -> list[list[Part]]:
    """Parts (B, 3, H, W) -> (B, C, h, w): a picture to one frame of latents, before the layers in time."""
    levels: list[list[Part]] = []
    for level in layers.down_block.down:
        *others, last = _blocks(level)
        levels.append([*others, _both(last, partial(_shrink, level)) if hasattr(level, "downsample") else last])
    levels[0][0] = _both(partial(_conv, layers.conv_in), levels[0][0])
    levels[-1] += [*_middle(layers.middle_block), partial(_finish, layers)]
    return levels


def decoder_levels(layers: Emu3VQVAEDecoder) -> list[list[Part]]:
    """Parts (B, C, h, w), codes (B, E, h, w) -> (B, 3, H, W): one frame, after the layers in time, to a picture."""
    levels: list[list[Part]] = [[partial(_conv, layers.conv_in), *_middle(layers.middle_block)]]
    change: Part = _unchanged
    for level in reversed(layers.up_block.up):
        first, *others = _blocks(level)
        levels.append([_both(change, first), *others])
        change = partial(_grow, level)
    levels[-1].append(partial(_finish, layers))
    return levels


def _blocks(level: Any) -> list[Part]:
    """Residual blocks of one level, each followed by attention where the level has it."""
    parts: list[Part] = []
    for number, block in enumerate(level.block):
        parts.append(partial(_residual, block))
        if level.attn:
            parts.append(partial(_attend, level.attn[number], level.attn_norms[number]))
    return parts


def _middle(middle: Any) -> list[Part]:
    attend = partial(_attend, middle.attn_1, middle.attn_norm)
    return [partial(_residual, middle.block_1), attend, partial(_residual, middle.block_2)]


def _both(first: Part, second: Part) -> Part:
    """One part out of two."""
    return lambda x, *codes: second(first(x, *codes), *codes)


# Parts: (B, C, H, W), and in the decoder the codes (B, E, h, w) that modulate its norms -> (B, C', H', W').


def _residual(block: Any, x: Tensor, *codes: Tensor) -> Tensor:
    # The shortcut comes first, so that its backward comes last, when the gradients of the other branch are freed.
    shortcut = frozen_conv(block.nin_shortcut, x) if block.in_channels != block.out_channels else x
    x = frozen_conv(block.conv1, norm_swish(block.norm1, x, *codes))
    return shortcut + frozen_conv(block.conv2, norm_swish(block.norm2, x, *codes))


def _attend(attention: Any, norm: Any, x: Tensor, *codes: Tensor) -> Tensor:
    cells = norm(x, *codes).flatten(2).transpose(1, 2)
    seen = attention(cells)[0]
    return x + seen.reshape(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


def _finish(layers: Any, x: Tensor, *codes: Tensor) -> Tensor:
    return frozen_conv(layers.conv_out, norm_swish(layers.norm_out, x, *codes))


def _conv(layer: Any, x: Tensor, *_: Tensor) -> Tensor:
    return frozen_conv(layer, x)


def _shrink(level: Any, x: Tensor, *_: Tensor) -> Tensor:
    return frozen_conv(level.downsample.conv, F.pad(x, (0, 1, 0, 1)))


def _grow(level: Any, x: Tensor, *_: Tensor) -> Tensor:
    return frozen_conv(level.upsample.conv, F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _unchanged(x: Tensor, *_: Tensor) -> Tensor:
    return x
