"""The frozen KL autoencoder of Harmon (KL-16 of MAR, arXiv 2406.11838): pictures <-> latents, differentiable in its inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megaunigame.models.recompute import frozen_conv, in_chunks
from megaunigame.models.vqgan.layers import Decoder, Encoder, Sizes

LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE = -30.0, 20.0


class Autoencoder(nn.Module):
    """Names of parameters are those of `kl16.ckpt`. Latents here are not scaled."""

    def __init__(self, encoder: Sizes, decoder: Sizes):
        """`encoder.latent` is twice `decoder.latent`: mean and log variance."""
        super().__init__()
        self.encoder, self.decoder = Encoder(encoder), Decoder(decoder)
        self.quant_conv = nn.Conv2d(encoder.latent, encoder.latent, 1)
        self.post_quant_conv = nn.Conv2d(decoder.latent, decoder.latent, 1)
        self.cell = 2 ** (len(encoder.multipliers) - 1)
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> mean and log variance (B, C, h, w) float32."""
        moments = in_chunks(self._moments, pixels[0, 0].numel(), pixels.to(self.dtype))
        mean, log_variance = moments.float().chunk(2, dim=1)
        return mean, log_variance.clamp(LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W) float32, not clamped."""
        pixels = latents[0, 0].numel() * self.cell**2
        return in_chunks(self._decode, pixels, latents.to(self.dtype)).float()

    def _moments(self, pixels: Tensor) -> Tensor:
        return frozen_conv(self.quant_conv, self.encoder(pixels))

    def _decode(self, latents: Tensor) -> Tensor:
        return self.decoder(frozen_conv(self.post_quant_conv, latents))
