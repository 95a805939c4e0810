"""The vision tokenizer of Show-o, MAGVIT-v2 (arXiv 2310.05737): pixels <-> codes, differentiable.

Its quantizer has no lookup: bit c of a code is 1 where channel c of the latent is above 0, the first channel is the most
significant bit, and the codebook row of a code are its bits as +1 and -1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from megaunigame.models.recompute import frozen_conv
from megaunigame.models.vqgan.code_tokenizer import CodeTokenizer
from megaunigame.models.vqgan.layers import Decoder, Encoder, Sizes


class Bits(nn.Module):
    """Buffers of the quantizer, as they are published: `embedding` (V, C) of +1 and -1, `power_vals` (C,) of powers of 2."""

    embedding: Tensor
    power_vals: Tensor

    def __init__(self, bits: int):
        super().__init__()
        self.register_buffer("power_vals", 2 ** torch.arange(bits - 1, -1, -1))
        codes = torch.arange(2**bits).unsqueeze(1)
        self.register_buffer("embedding", ((codes & self.power_vals) != 0) * 2.0 - 1)


class Magvit(CodeTokenizer):
    """Names of parameters and buffers are the official ones."""

    def __init__(self, encoder: Sizes, decoder: Sizes):
        """Both with as many latent channels as a code has bits, and with as many levels."""
        super().__init__()
        bits = encoder.latent
        self.encoder: Any = Encoder(encoder)
        self.encoder.quant_conv = nn.Conv2d(bits, bits, 1)
        self.decoder: Any = Decoder(decoder)
        self.decoder.post_quant_conv = nn.Conv2d(bits, bits, 1)
        self.quantize = Bits(bits)
        self.cell = 2 ** (len(encoder.multipliers) - 1)
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.conv_in.weight.dtype  # type: ignore[no-any-return]

    def codebook(self) -> Tensor:
        """(V, C) float32: +1 and -1."""
        return self.quantize.embedding.float()

    def nearest(self, latents: Tensor, count: int = 1) -> Tensor:
        """(B, C, h, w) latents -> (B, h, w, K) codes, the nearest first, without a search. No gradient.

        After the code itself come those that differ from it in one bit, of the channels nearest to 0: at most C of them. A code
        that differs in two bits is left out, though it may be nearer.
        """
        cells = latents.detach().permute(0, 2, 3, 1)
        powers = self.quantize.power_vals
        codes = ((cells > 0) * powers).sum(-1, keepdim=True)
        others = min(count - 1, len(powers))
        flipped = powers[cells.abs().topk(others, dim=-1, largest=False).indices]
        return torch.cat([codes, codes ^ flipped], dim=-1)

    def _latents(self, pixels: Tensor) -> Tensor:
        return frozen_conv(self.encoder.quant_conv, self.encoder(pixels.to(self.dtype))).float()

    def _decode(self, quant: Tensor) -> Tensor:
        return self.decoder(frozen_conv(self.decoder.post_quant_conv, quant.to(self.dtype)))
