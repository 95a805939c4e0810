"""The image tokenizer of Janus (VQ-16 of LlamaGen): pixels <-> codes, differentiable.

The released tokenizer compares directions: a latent and the rows of the codebook are scaled to unit length before the nearest
row is looked up, and the decoder receives unit rows. The quantizer of transformers does not scale when it encodes, which
changes many codes; so the layers are transformers', the quantization is written here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusVQVAE
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

from megaunigame.models.recompute import Part, in_chunks, through_levels


@dataclass
class TokenizerOutput:
    """A training pass of the image tokenizer."""

    reconstruction: Tensor
    """(B, 3, H, W), about [-1, 1], not clamped."""
    codebook_loss: Tensor
    """(): mean squared distance, gradient into the codebook only."""
    commit_loss: Tensor
    """(): commit_beta times the same distance, gradient into the encoder only."""
    codes: Tensor
    """(B, N) int64, row-major."""


class ImageTokenizer(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] <-> codes (B, N), N = (H / down-sampling)^2, row-major.

    Names of the parameters are those of transformers' JanusVQVAE. Lengths and distances are float32 for weights of any dtype.
    """

    def __init__(self, config: JanusVQVAEConfig, commit_beta: float = 0.25):
        super().__init__()
        layers = JanusVQVAE(config)
        self.encoder = layers.encoder
        self.quantize = layers.quantize
        self.quant_conv = layers.quant_conv
        self.post_quant_conv = layers.post_quant_conv
        self.decoder = layers.decoder
        self.config = config
        self.commit_beta = commit_beta
        self.train()  # transformers leaves its parts in eval mode, half of them by accident

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype

    def codebook(self) -> Tensor:
        """(V, C) float32, rows of unit length."""
        return F.normalize(self.quantize.embedding.weight.float(), dim=-1)

    def prequant(self, pixels: Tensor) -> Tensor:
        """(B, C, h, w): the latent before it is scaled to unit length."""
        return self.quant_conv(self.encoder(pixels.to(self.dtype)))

    def latents(self, pixels: Tensor) -> Tensor:
        """(B, C, h, w) float32: the latent of every cell, of unit length."""
        return F.normalize(self.prequant(pixels).float(), dim=1)

    def nearest(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) unit latents -> (B, N) codes: between unit vectors the nearest has the largest dot product."""
        cells = latents.detach().flatten(2).transpose(1, 2)
        return (cells @ self.codebook().detach().T).argmax(-1)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N) codes. No gradient."""
        return in_chunks(lambda some: self.nearest(self.latents(some)), pixels[0, 0].numel(), pixels)

    def embed(self, codes: Tensor) -> Tensor:
        """(B, N) -> (B, C, h, w) float32: unit rows of the codebook, on the (square) grid."""
        return _grid(F.embedding(codes, self.codebook()))

    def decode_embeddings(self, quant: Tensor) -> Tensor:
        """(B, C, h, w) unit rows -> (B, 3, H, W), not clamped. A tokenizer in eval mode keeps little for the backward."""
        if self.training:
            return self.decoder(self.post_quant_conv(quant.to(self.dtype)))
        levels = [[self.post_quant_conv], *_levels(self.decoder)]
        pixels = quant[0, 0].numel() * 4 ** (len(self.config.channel_multiplier) - 1)
        return in_chunks(lambda some: through_levels(levels, some), pixels, quant.to(self.dtype))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """(B, N) -> (B, 3, H, W), not clamped."""
        return self.decode_embeddings(self.embed(codes))

    def decode_mean(self, codes: Tensor, mean: Tensor) -> Tensor:
        """(B, N), (B, N, C) -> (B, 3, H, W): the picture of `codes`, with the gradient of `mean`, a mean of rows.

        Straight-through: the mean over all rows is far shorter than a row, so outside the decoder's training distribution;
        only its gradient is used.
        """
        return self.decode_embeddings(self.embed(codes).detach() + _grid(mean - mean.detach()))

    def forward(self, pixels: Tensor) -> TokenizerOutput:
        """Reconstruct through the codes. The decoder's gradient passes to the unit latents, and so to the encoder."""
        latents = self.latents(pixels)
        codes = self.nearest(latents)
        quant = self.embed(codes)
        reconstruction = self.decode_embeddings(quant.detach() + (latents - latents.detach()))
        return TokenizerOutput(
            reconstruction=reconstruction,
            codebook_loss=F.mse_loss(quant, latents.detach()),
            commit_loss=self.commit_beta * F.mse_loss(latents, quant.detach()),
            codes=codes,
        )


def _levels(decoder: JanusVQVAEDecoder) -> list[list[Part]]:
    """The decoder's layers by resolution, in the order of transformers."""
    parts: list[Part] = [decoder.conv_in, decoder.mid.block_1, decoder.mid.attn_1, decoder.mid.block_2]
    levels = [parts]
    for level in decoder.up:
        for number, block in enumerate(level.block):
            parts.append(block)
            if len(level.attn):
                parts.append(level.attn[number])
        if hasattr(level, "upsample"):
            parts = [level.upsample]
            levels.append(parts)
    parts.append(lambda x: decoder.conv_out(_swish(decoder.norm_out(x))))
    return levels


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _grid(cells: Tensor) -> Tensor:
    """(B, N, C) -> (B, C, h, w) on a square grid, in the ordinary (channels first) memory order."""
    side = isqrt(cells.shape[1])
    return cells.transpose(1, 2).reshape(cells.shape[0], cells.shape[2], side, side).contiguous()
