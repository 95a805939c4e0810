"""VQGAN (arXiv 2012.09841) with a stored codebook: pixels <-> codes, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megaunigame.models.recompute import frozen_conv
from megaunigame.models.vqgan.code_tokenizer import CodeTokenizer
from megaunigame.models.vqgan.layers import Decoder, Encoder, Sizes


class CodebookTokenizer(CodeTokenizer):
    """Names of parameters are those of the original code."""

    def __init__(self, encoder: Sizes, decoder: Sizes, codes: int, width: int):
        """`codes`: rows of the codebook (V). `width`: of a row (C)."""
        super().__init__()
        self.encoder, self.decoder = Encoder(encoder), Decoder(decoder)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(codes, width)})
        self.quant_conv = nn.Conv2d(encoder.latent, width, 1)
        self.post_quant_conv = nn.Conv2d(width, decoder.latent, 1)
        self.cell = 2 ** (len(encoder.multipliers) - 1)
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype

    def codebook(self) -> Tensor:
        """(V, C) float32."""
        return self.quantize["embedding"].weight.float()  # type: ignore[operator, union-attr, return-value]

    def _latents(self, pixels: Tensor) -> Tensor:
        return frozen_conv(self.quant_conv, self.encoder(pixels.to(self.dtype))).float()

    def _decode(self, quant: Tensor) -> Tensor:
        return self.decoder(frozen_conv(self.post_quant_conv, quant.to(self.dtype)))  # type: ignore[no-any-return]
