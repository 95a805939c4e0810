"""The vision tokenizer of Emu3.5 (IBQ, arXiv 2412.02692): pixels <-> codes, differentiable.

A code is the row of the codebook with the largest dot product with the latent: no distance, no norm. The official gradient of a
code is that of a softmax over all 131,072 dot products; here it is over the largest `NEIGHBORS`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from megaunigame.models.emu3_5.configuration import VisionConfig
from megaunigame.models.recompute import frozen_conv
from megaunigame.models.vqgan.code_tokenizer import CodeTokenizer
from megaunigame.models.vqgan.layers import Decoder, Encoder, Sizes, attention_levels


class VisionTokenizer(CodeTokenizer):
    """Names of parameters are the official ones; they are not initialized."""

    def __init__(self, config: VisionConfig):
        super().__init__()
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
            self.encoder, self.decoder = Encoder(sizes["encoder"]), Decoder(sizes["decoder"])
            self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config.codebook_size, config.embed_dim)})
            self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
            self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)
        self.config = config
        self.cell = 2 ** (len(multipliers) - 1)
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype

    def codebook(self) -> Tensor:
        """(V, C) float32."""
        return self.quantize["embedding"].weight.float()  # type: ignore[operator, union-attr, return-value]

    def scores(self, cells: Tensor, rows: Tensor) -> Tensor:
        """(n, C) latents, (V, C) rows -> (n, V): dot products."""
        return cells @ rows.T

    def closeness(self, cells: Tensor, rows: Tensor) -> Tensor:
        """(..., 1, C) latents, (..., K, C) rows -> (..., K): dot products, differentiable; the official temperature is 1."""
        return (cells * rows).sum(-1)

    def _latents(self, pixels: Tensor) -> Tensor:
        return frozen_conv(self.quant_conv, self.encoder(pixels.to(self.dtype))).float()

    def _decode(self, quant: Tensor) -> Tensor:
        return self.decoder(frozen_conv(self.post_quant_conv, quant.to(self.dtype)))  # type: ignore[no-any-return]
