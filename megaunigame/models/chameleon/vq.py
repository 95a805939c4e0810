"""The image tokenizer of Chameleon (arXiv 2203.13131, section 3): pixels <-> codes, differentiable.

Its layers are those of VQGAN; a code is the row of the codebook nearest to the latent (Euclidean distance). Codes are numbered
as their tokens are: number p is place p among the tokens of codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import ChameleonVQVAEConfig

from megaunigame.models.vqgan.code_tokenizer import CodeTokenizer
from megaunigame.models.vqgan.layers import Decoder, Encoder, Sizes, attention_levels


class ImageTokenizer(CodeTokenizer):
    """Names of parameters are those of the original release, decoder included."""

    def __init__(self, config: ChameleonVQVAEConfig, codes: Sequence[int]):
        """`codes`: place -> code, that is, row of the stored codebook."""
        super().__init__()
        self.encoder = Encoder(_sizes(config, config.num_res_blocks))
        self.decoder = Decoder(_sizes(config, config.num_res_blocks + 1))
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config.num_embeddings, config.embed_dim)})
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)
        self.register_buffer("codes", torch.tensor(codes), persistent=False)
        self.cell = 2 ** (len(config.channel_multiplier) - 1)
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype

    def codebook(self) -> Tensor:
        """(V, C) float32, row p: that of the code at place p."""
        return self.quantize["embedding"].weight.index_select(0, self.codes).float()  # type: ignore[union-attr, arg-type, no-any-return, operator]

    def _latents(self, pixels: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(pixels.to(self.dtype))).float()  # type: ignore[no-any-return]

    def _decode(self, quant: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(quant.to(self.dtype)))  # type: ignore[no-any-return]


def _sizes(config: ChameleonVQVAEConfig, blocks: int) -> Sizes:
    levels = len(config.channel_multiplier)
    return Sizes(
        base_channels=config.base_channels,
        multipliers=tuple(config.channel_multiplier),
        blocks=(blocks,) * levels,
        attention=attention_levels(config.resolution, config.attn_resolutions or (), levels),
        pixels=config.in_channels,
        latent=config.latent_channels,
    )
