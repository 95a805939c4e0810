"""The diffusion head: a network on single tokens, with their condition and the noise level (MAR, arXiv 2406.11838)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

EPSILON = 1e-6
FREQUENCIES = 256
LONGEST_PERIOD = 10000.0


class LevelEmbedding(nn.Module):
    """Noise levels (...) -> (..., W)."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, levels: Tensor, dtype: torch.dtype) -> Tensor:
        half = FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=levels.device)
        angles = levels.float().unsqueeze(-1) * (-math.log(LONGEST_PERIOD) * steps / half).exp()
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))


class ResidualBlock(nn.Module):
    """A layer whose norm is shifted and scaled, and whose output is gated, by the condition."""

    def __init__(self, width: int):
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(condition).chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale) + shift)


class TokenNetwork(nn.Module):
    """Noisy tokens (..., C), their levels (...) and conditions (..., E) -> noise and v, (..., C) float32 each."""

    def __init__(self, channels: int, condition: int, width: int, layers: int):
        super().__init__()
        self.time_embed = LevelEmbedding(width)
        self.cond_embed = nn.Linear(condition, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(layers))
        self.final_layer = FinalLayer(width, 2 * channels)
        self.gradient_checkpointing = False

    def forward(self, x: Tensor, levels: Tensor, condition: Tensor) -> Tensor:
        """(..., 2 C) in the dtype of `condition`."""
        x = self.input_proj(x.to(condition.dtype))
        y = self.time_embed(levels, condition.dtype) + self.cond_embed(condition)
        for block in self.res_blocks:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, y, use_reentrant=False)
            else:
                x = block(x, y)
        return self.final_layer(x, y)


class DiffusionHead(nn.Module):
    """Holds the network, as official names do."""

    def __init__(self, channels: int, condition: int, width: int, layers: int):
        super().__init__()
        self.net = TokenNetwork(channels, condition, width, layers)

    def forward(self, x: Tensor, levels: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and v, (..., C) float32 each."""
        noise, v = self.net(x, levels, condition).float().chunk(2, dim=-1)
        return noise, v
