"""The masked autoencoder (MAR, arXiv 2406.11838) around a language model: its encoder reads the visible tokens of a picture,
its decoder completes the others. Names of parameters are the official ones.

A sequence begins with K buffer tokens, which stand for no place of the picture and are always visible.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megaunigame.models.harmon.configuration import HarmonConfig
from megaunigame.models.harmon.head import EPSILON, DiffusionHead

Grid = tuple[int, int]
"""Tokens of a picture: lines and columns."""


class Attention(nn.Module):
    """Every token sees all; names as in timm."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn_drop, self.proj_drop = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropped = self.attn_drop.p if self.attn_drop.training else 0.0
        seen = F.scaled_dot_product_attention(query, key, value, dropout_p=dropped)
        return self.proj_drop(self.proj(seen.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int, dropout: float):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.drop1, self.drop2 = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """A pre-norm layer, as in timm's vision transformer."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPSILON), nn.LayerNorm(width, eps=EPSILON)
        self.attn, self.mlp = Attention(width, heads, dropout), Mlp(width, width * mlp_ratio, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MaskedAutoencoder(nn.Module):
    """Its own parameters (positions, mask token, buffer token) are read in its `forward` only, where the engine gathers them;
    so encoding and decoding are both calls of the module."""

    def __init__(self, config: HarmonConfig):
        super().__init__()
        sizes, channels = config.mar, config.channels
        width, self.buffer_tokens, self.native = sizes["width"], config.buffers, config.native_side
        blocks = width, sizes["heads"], sizes["mlp_ratio"], sizes["dropout"]
        places = self.native**2
        self.fake_latent = nn.Parameter(torch.empty(1, width))
        self.z_proj, self.z_proj_ln = nn.Linear(channels, width), nn.LayerNorm(width, eps=EPSILON)
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, self.buffer_tokens + places, width))
        self.encoder_blocks = nn.ModuleList(Block(*blocks) for _ in range(sizes["encoder_layers"]))
        self.encoder_norm = nn.LayerNorm(width, eps=EPSILON)
        self.decoder_embed = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, self.buffer_tokens + places, width))
        self.decoder_blocks = nn.ModuleList(Block(*blocks) for _ in range(sizes["decoder_layers"]))
        self.decoder_norm = nn.LayerNorm(width, eps=EPSILON)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, places, width))
        self.diffloss = DiffusionHead(channels, width, sizes["head_width"], sizes["head_layers"])
        self.gradient_checkpointing = False

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward, layer by layer."""
        self.gradient_checkpointing = self.diffloss.net.gradient_checkpointing = True

    def forward(self, x: Tensor, seen: Tensor, grid: Grid, decode: bool = False) -> Tensor:
        """`seen` (B, V) int64, ascending: places of a picture of `grid` that are visible.

        Encode: latents (B, V, C) of those places -> (B, K + V, E), buffers first.
        Decode: (B, K + V, E) -> conditions (B, N, E) of the diffusion head, at all places.
        """
        return self._decode(x, seen, grid) if decode else self._encode(x, seen, grid)

    def _encode(self, latents: Tensor, seen: Tensor, grid: Grid) -> Tensor:
        rows, kept = len(latents), self.fake_latent
        buffers, places = self._positions(self.encoder_pos_embed_learned, grid, latents.dtype)
        visible = self.z_proj(latents) + taken(places.expand(rows, -1, -1), seen)
        first = (kept.to(latents.dtype) + buffers).expand(rows, -1, -1)
        return self.encoder_norm(self._through(self.encoder_blocks, self.z_proj_ln(torch.cat([first, visible], dim=1))))

    def _decode(self, x: Tensor, seen: Tensor, grid: Grid) -> Tensor:
        rows, count = len(x), grid[0] * grid[1]
        known = self.decoder_embed(x)
        whole = self.mask_token.to(x.dtype).expand(rows, count, -1)
        whole = whole.scatter(1, _index(seen, whole), known[:, self.buffer_tokens :])
        buffers, places = self._positions(self.decoder_pos_embed_learned, grid, x.dtype)
        whole = torch.cat([known[:, : self.buffer_tokens] + buffers, whole + places], dim=1)
        drawn = self.decoder_norm(self._through(self.decoder_blocks, whole))[:, self.buffer_tokens :]
        return drawn + self._resized(self.diffusion_pos_embed_learned, grid, x.dtype)

    def _through(self, blocks: Any, x: Tensor) -> Tensor:
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.gradient_checkpointing and self.training else block(x)
        return x

    def _positions(self, table: Tensor, grid: Grid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Positions of the buffers (1, K, E) and of the places of a picture (1, N, E)."""
        return table[:, : self.buffer_tokens].to(dtype), self._resized(table[:, self.buffer_tokens :], grid, dtype)

    def _resized(self, table: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
        """(1, n, E) of the native grid -> (1, N, E) of `grid`, bilinear."""
        if grid == (self.native, self.native):
            return table.to(dtype)
        picture = table.transpose(1, 2).unflatten(2, (self.native, self.native))
        return F.interpolate(picture.float(), grid, mode="bilinear").flatten(2).transpose(1, 2).to(dtype)


def _index(seen: Tensor, of: Tensor) -> Tensor:
    """(B, V) -> (B, V, E), for gather and scatter."""
    return seen.unsqueeze(-1).expand(-1, -1, of.shape[-1])


def taken(values: Tensor, places: Tensor) -> Tensor:
    """(B, N, E), (B, V) -> (B, V, E)."""
    return values.gather(1, _index(places, values))
