"""Encoding and decoding with the deep-compression autoencoder, a few pictures at a time, with a memory-saving backward."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from megaunigame.models.recompute import Part, in_chunks, through_levels

if TYPE_CHECKING:
    from diffusers import AutoencoderDC


def encode(autoencoder: AutoencoderDC, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, C, h, w) float32, scaled to about unit variance."""
    latents = in_chunks(autoencoder.encoder, pixels[0, 0].numel(), pixels.to(autoencoder.dtype))
    return latents.float() * autoencoder.config.scaling_factor


def decode(autoencoder: AutoencoderDC, latents: Tensor) -> Tensor:
    """(B, C, h, w) scaled latents -> (B, 3, H, W) float32, not clamped; differentiable."""
    unscaled = (latents / autoencoder.config.scaling_factor).to(autoencoder.dtype)
    pixels = latents[0, 0].numel() * autoencoder.spatial_compression_ratio**2
    levels = _levels(autoencoder.decoder)
    return in_chunks(lambda some: through_levels(levels, some), pixels, unscaled).float()


def _levels(decoder: Any) -> list[list[Part]]:
    """The decoder's layers by resolution, in the order of diffusers."""
    coarsest, *finer = (list(level) for level in reversed(decoder.up_blocks))
    levels: list[list[Part]] = [[partial(_start, decoder), *coarsest], *finer]
    levels[-1].append(partial(_finish, decoder))
    return levels


def _start(decoder: Any, latents: Tensor) -> Tensor:
    x = decoder.conv_in(latents)
    return x + latents.repeat_interleave(decoder.in_shortcut_repeats, dim=1) if decoder.in_shortcut else x


def _finish(decoder: Any, x: Tensor) -> Tensor:
    x = decoder.norm_out(x.movedim(1, -1)).movedim(-1, 1)
    return decoder.conv_out(decoder.conv_act(x))
