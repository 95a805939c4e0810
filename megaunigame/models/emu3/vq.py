"""The vision tokenizer of Emu3: pixels <-> codes, differentiable.

A picture of 720 x 720 would keep 60 GB for the backward through decoder and encoder; both recompute instead, see `recompute`.
It is made for videos: a picture is encoded as `temporal_downsample_factor` equal frames, and decoded to as many, of which the
first is used. The layers are transformers'; only those in time run for every frame here, which is a quarter of the work for the
same numbers. A code is the row of the codebook nearest to the latent (Euclidean distance).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Emu3VQVAE
from transformers.initialization import no_init_weights
from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig

from megaunigame.models.emu3.vq_parts import decoder_levels, encoder_levels
from megaunigame.models.recompute import in_chunks, through_levels

NEIGHBORS = 8
"""Nearest codes in the soft assignment that carries the gradient from codes to latents."""
CELLS_AT_A_TIME = 4096
"""Cells whose distances to all codes are in memory at a time: 0.5 GB for 32,768 codes."""


class VisionTokenizer(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] <-> codes (B, h, w), h = H / 2^(levels - 1).

    Names of parameters and buffers are those of transformers' Emu3VQVAE; they are not initialized, and frozen: gradients
    reach pixels and embeddings, but no weight. Distances are float32 for weights of any dtype.
    """

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
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.conv.weight.dtype

    def codebook(self) -> Tensor:
        """(V, C) float32."""
        return self.quantize.embedding.weight.float()

    def latents(self, pixels: Tensor) -> Tensor:
        """(B, C, h, w) float32, to be compared with the codebook."""
        return in_chunks(self._latents, pixels[0, 0].numel(), pixels)

    def _latents(self, pixels: Tensor) -> Tensor:
        frame = through_levels(encoder_levels(self.encoder), pixels.to(self.dtype))
        frames = frame.unsqueeze(2).repeat(1, 1, self.config.temporal_downsample_factor, 1, 1)
        for shrink in self.encoder.time_conv:
            frames = _swish(shrink(frames))
        for block in self.encoder.time_res_stack:
            frames = block(frames)
        return self.quant_conv(frames)[:, :, 0].float()

    def nearest(self, latents: Tensor, count: int = 1) -> Tensor:
        """(B, C, h, w) latents -> (B, h, w, count) codes, the nearest first. No gradient."""
        codebook = self.codebook().detach()
        lengths = codebook.square().sum(1)

        def among(cells: Tensor) -> Tensor:
            distances = cells.square().sum(1, keepdim=True) + lengths - 2 * cells @ codebook.T
            return distances.topk(count, dim=1, largest=False).indices

        grid = latents.detach().permute(0, 2, 3, 1)
        return torch.cat([among(cells) for cells in grid.flatten(0, 2).split(CELLS_AT_A_TIME)]).view(*grid.shape[:3], count)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h, w) codes. No gradient."""
        return self.nearest(self.latents(pixels)).squeeze(-1)

    def neighbors(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, h, w, K) codes, the nearest first, and (B, h, w, K) their shares, differentiable.

        Shares are a softmax over minus the squared distances, in units of their mean: near the border between two codes a
        small step of the latent moves much of the share from one to the other, at the scale of the codebook. Farther codes
        are left out; their shares would be nearly 0.
        """
        latents = self.latents(pixels)
        codes = self.nearest(latents, min(NEIGHBORS, len(self.codebook())))
        cells = latents.permute(0, 2, 3, 1).unsqueeze(-2)
        distances = (cells - F.embedding(codes, self.codebook().detach())).square().sum(-1)
        unit = distances.detach().mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return codes, (-distances / unit).softmax(-1)

    def embed(self, codes: Tensor) -> Tensor:
        """(B, h, w) -> (B, C, h, w) float32: rows of the codebook."""
        return F.embedding(codes, self.codebook()).permute(0, 3, 1, 2)

    def decode_embeddings(self, quant: Tensor) -> Tensor:
        """(B, C, h, w) rows of the codebook -> (B, 3, H, W), not clamped."""
        shrinks = 2 ** (len(self.config.channel_multiplier) - 1)
        return in_chunks(self._decode_embeddings, quant[0, 0].numel() * shrinks**2, quant)

    def _decode_embeddings(self, quant: Tensor) -> Tensor:
        codes = quant.to(self.dtype).unsqueeze(2)
        # The codes pass the same layers in time as the picture: every norm of the decoder is modulated by them.
        frames = torch.cat([self.post_quant_conv(codes), codes])
        for block in self.decoder.time_res_stack:
            frames = block(frames)
        for grow in self.decoder.time_conv:
            frames = _swish(grow(frames))
        picture, codes = frames[:, :, 0].chunk(2)
        return through_levels(decoder_levels(self.decoder), picture, codes)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """(B, h, w) -> (B, 3, H, W), not clamped."""
        return self.decode_embeddings(self.embed(codes))

    def decode_mean(self, codes: Tensor, mean: Tensor) -> Tensor:
        """(B, h, w), (B, h, w, C) -> (B, 3, H, W): the picture of `codes`, with the gradient of `mean`, a mean of rows.

        Straight-through: the mean over all rows is far shorter than a row, so outside the decoder's training distribution;
        only its gradient is used.
        """
        return self.decode_embeddings(self.embed(codes).detach() + (mean - mean.detach()).permute(0, 3, 1, 2))


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)
