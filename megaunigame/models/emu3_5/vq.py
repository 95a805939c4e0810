"""The vision tokenizer of Emu3.5 (IBQ, arXiv 2412.02692): pixels <-> codes, differentiable.

A code is the row of the codebook with the largest dot product with the latent: no distance, no norm. The official gradient of a
code is that of a softmax over all 131,072 dot products; here it is over the largest `NEIGHBORS`.
"""

from __future__ import annotations

from torch import Tensor
from transformers.initialization import no_init_weights

from megaunigame.models.emu3_5.configuration import VisionConfig
from megaunigame.models.vqgan.codebook_tokenizer import CodebookTokenizer
from megaunigame.models.vqgan.layers import Sizes, attention_levels


class VisionTokenizer(CodebookTokenizer):
    """Names of parameters are the official ones; they are not initialized."""

    def __init__(self, config: VisionConfig):
        multipliers, blocks = config.channel_multiplier, config.num_res_blocks
        attention = attention_levels(config.resolution, config.attn_resolutions, len(multipliers))
        sides = {"encoder": (blocks, config.in_channels), "decoder": (blocks + 1, config.out_channels)}
        sizes = {
            side: Sizes(
                config.base_channels, multipliers, (count,) * len(multipliers), attention, pixels, config.latent_channels
            )
            for side, (count, pixels) in sides.items()
        }
        with no_init_weights():
            super().__init__(**sizes, codes=config.codebook_size, width=config.embed_dim)

    def scores(self, cells: Tensor, rows: Tensor) -> Tensor:
        """(n, C) latents, (V, C) rows -> (n, V): dot products."""
        return cells @ rows.T

    def closeness(self, cells: Tensor, rows: Tensor) -> Tensor:
        """(..., 1, C) latents, (..., K, C) rows -> (..., K): dot products, differentiable; the official temperature is 1."""
        return (cells * rows).sum(-1)
