"""The autoencoder of FLUX.1: pixels <-> latents of unit variance, differentiable, with a memory-saving backward.

The layers are those of VQGAN, under the same names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megaunigame.models.recompute import in_chunks
from megaunigame.models.vqgan.layers import Decoder, Encoder, Sizes


class Autoencoder(nn.Module):
    """The encoder gives mean and logarithm of the variance of a posterior."""

    def __init__(self, encoder: Sizes, decoder: Sizes, scale: float, shift: float):
        super().__init__()
        self.encoder, self.decoder = Encoder(encoder), Decoder(decoder)
        self.scale, self.shift = scale, shift
        self.cell = 2 ** (len(encoder.multipliers) - 1)
        """Pixels of one latent cell along an edge."""

    def moments(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 2 C, h, w) float32: means, and logarithms of variances."""
        dtype = self.encoder.conv_in.weight.dtype
        return in_chunks(self.encoder, pixels[0, 0].numel(), pixels.to(dtype)).float()

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w) float32: a sample of the posterior by standard normal `noise`, its mean without."""
        mean, log_variance = self.moments(pixels).chunk(2, dim=1)
        latents = mean if noise is None else mean + (log_variance / 2).exp() * noise
        return self.scale * (latents - self.shift)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W) float32, about [-1, 1], not clamped; differentiable."""
        unscaled = (latents / self.scale + self.shift).to(self.decoder.conv_in.weight.dtype)
        return in_chunks(self.decoder, latents[0, 0].numel() * self.cell**2, unscaled).float()


def patched(latents: Tensor, patch: int) -> Tensor:
    """(B, C, h, w) -> (B, N, patch^2 C): patches line by line; inside one, row, column, channel."""
    rows, channels, height, width = latents.shape
    grid = latents.view(rows, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(rows, -1, patch * patch * channels)


def unpatched(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Inverse of `patched`; `height`, `width`: of the latents, in cells."""
    grid = tokens.view(len(tokens), height // patch, width // patch, patch, patch, -1)
    return torch.einsum("nhwpqc->nchpwq", grid).reshape(len(tokens), -1, height, width)
