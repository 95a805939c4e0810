"""The vision tokenizer of Emu3: pixels <-> codes, differentiable.

A picture of 720 x 720 would keep 60 GB for the backward through decoder and encoder; both recompute instead, see `recompute`.
It is made for videos: a picture is encoded as `temporal_downsample_factor` equal frames, and decoded to as many, of which the
first is used. The layers are transformers'; only those in time run for every frame here, which is a quarter of the work for the
same numbers. A code is the row of the codebook nearest to the latent (Euclidean distance).
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Emu3VQVAE
from transformers.initialization import no_init_weights
from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig

from megaunigame.models.emu3.vq_parts import decoder_levels, encoder_levels
from megaunigame.models.recompute import through_levels
from megaunigame.models.vqgan.code_tokenizer import CodeTokenizer


class VisionTokenizer(CodeTokenizer):
    """Names of parameters and buffers are those of transformers' Emu3VQVAE; they are not initialized."""

    def __init__(self, config: Emu3VQVAEConfig):
        super().__init__()
        with no_init_weights():
            layers = Emu3VQVAE(config)
        self.encoder = layers.encoder
        self.decoder = layers.decoder
        self.quantize = layers.quantize
        self.quant_conv = layers.quant_conv
        self.post_quant_conv = layers.post_quant_conv
        self.config = config
        self.cell = 2 ** (len(config.channel_multiplier) - 1)
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.conv.weight.dtype

    def codebook(self) -> Tensor:
        """(V, C) float32."""
        return self.quantize.embedding.weight.float()

    def _latents(self, pixels: Tensor) -> Tensor:
        frame = through_levels(encoder_levels(self.encoder), pixels.to(self.dtype))
        frames = frame.unsqueeze(2).repeat(1, 1, self.config.temporal_downsample_factor, 1, 1)
        for shrink in self.encoder.time_conv:
            frames = _swish(shrink(frames))
        for block in self.encoder.time_res_stack:
            frames = block(frames)
        return self.quant_conv(frames)[:, :, 0].float()

    def _decode(self, quant: Tensor) -> Tensor:
        codes = quant.to(self.dtype).unsqueeze(2)
        # The codes pass the same layers in time as the picture: every norm of the decoder is modulated by them.
        frames = torch.cat([self.post_quant_conv(codes), codes])
        for block in self.decoder.time_res_stack:
            frames = block(frames)
        for grow in self.decoder.time_conv:
            frames = _swish(grow(frames))
        picture, codes = frames[:, :, 0].chunk(2)
        return through_levels(decoder_levels(self.decoder), picture, codes)


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)
