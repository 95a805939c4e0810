"""The image tokenizer of Chameleon (arXiv 2203.13131, section 3): pixels <-> codes, differentiable.

Its layers are those of VQGAN; a code is the row of the codebook nearest to the latent (Euclidean distance). Codes are numbered
as their tokens are: number p is place p among the tokens of codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import ChameleonVQVAEConfig

from megaunigame.models.vqgan.codebook_tokenizer import CodebookTokenizer
from megaunigame.models.vqgan.layers import Sizes, attention_levels


class ImageTokenizer(CodebookTokenizer):
    """Names of parameters are those of the original release, decoder included."""

    def __init__(self, config: ChameleonVQVAEConfig, codes: Sequence[int]):
        """`codes`: place -> code, that is, row of the stored codebook."""
        blocks = config.num_res_blocks
        super().__init__(_sizes(config, blocks), _sizes(config, blocks + 1), config.num_embeddings, config.embed_dim)
        self.register_buffer("codes", torch.tensor(codes), persistent=False)

    def codebook(self) -> Tensor:
        """(V, C) float32, row p: that of the code at place p."""
        return self.quantize["embedding"].weight.index_select(0, self.codes).float()  # type: ignore[union-attr, arg-type, no-any-return, operator]


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
