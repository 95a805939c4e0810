"""The convolutional layers of the vision tokenizer as parts, grouped by resolution; the layers and their order are
transformers'."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers.models.emu3.modeling_emu3 import Emu3VQVAEDecoder, Emu3VQVAEEncoder

from megaunigame.models.recompute import Part
from megaunigame.models.vqgan import parts
from megaunigame.models.vqgan.parts import residual


def encoder_levels(layers: Emu3VQVAEEncoder) -> list[list[Part]]:
    """Parts (B, 3, H, W) -> (B, C, h, w): a picture to one frame of latents, before the layers in time."""
    down = [(level, _blocks(level)) for level in layers.down_block.down]
    return parts.encoder_levels(layers, down, _middle(layers.middle_block))


def decoder_levels(layers: Emu3VQVAEDecoder) -> list[list[Part]]:
    """Parts (B, C, h, w), codes (B, E, h, w) -> (B, 3, H, W): one frame, after the layers in time, to a picture."""
    up = [(level, _blocks(level)) for level in reversed(layers.up_block.up)]
    return parts.decoder_levels(layers, up, _middle(layers.middle_block))


def _blocks(level: Any) -> list[Part]:
    """Residual blocks of one level, each followed by attention where the level has it."""
    blocks: list[Part] = []
    for number, block in enumerate(level.block):
        blocks.append(partial(residual, block))
        if level.attn:
            blocks.append(partial(_attend, level.attn[number], level.attn_norms[number]))
    return blocks


def _middle(middle: Any) -> list[Part]:
    attend = partial(_attend, middle.attn_1, middle.attn_norm)
    return [partial(residual, middle.block_1), attend, partial(residual, middle.block_2)]


def _attend(attention: Any, norm: Any, x: Tensor, *codes: Tensor) -> Tensor:
    cells = norm(x, *codes).flatten(2).transpose(1, 2)
    seen = attention(cells)[0]
    return x + seen.reshape(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
