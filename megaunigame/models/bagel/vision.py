"""SigLIP as BAGEL has it: linear patches in the order row, column, channel, and positions by row and column of a patch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder, SiglipPreTrainedModel

from megaunigame.models.bagel.autoencoder import patched
from megaunigame.models.bagel.tables import grid_ids


class Embeddings(nn.Module):
    """(B, N, 3 patch^2) patches and (N,) ids of their places -> (B, N, width)."""

    def __init__(self, config: SiglipVisionConfig, side: int):
        super().__init__()
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(side**2, config.hidden_size)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        return self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)) + self.position_embedding(ids)


class Tower(nn.Module):
    """The layers, under the names of the release."""

    def __init__(self, config: SiglipVisionConfig, side: int):
        super().__init__()
        self.embeddings = Embeddings(config, side)
        self.encoder = SiglipEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class VisionTower(SiglipPreTrainedModel):
    """Pictures (B, 3, H, W) in [-1, 1] -> (B, N, width), N patches line by line."""

    config: SiglipVisionConfig

    def __init__(self, config: SiglipVisionConfig, side: int):
        """`side`: patches along the edge of the largest picture."""
        super().__init__(config)
        self.side = side
        self.vision_model = Tower(config, side)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.embeddings.patch_embedding

    def forward(self, pixels: Tensor) -> Tensor:
        patch, tower = self.config.patch_size, self.vision_model
        ids = grid_ids(pixels.shape[2] // patch, pixels.shape[3] // patch, self.side, pixels.device)
        hidden = tower.encoder(inputs_embeds=tower.embeddings(patched(pixels, patch), ids)).last_hidden_state
        return tower.post_layernorm(hidden)


class Connector(nn.Module):
    """(B, N, width of the tower) -> (B, N, D)."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, out), nn.Linear(out, out)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))


class TimeEmbedder(nn.Module):
    """Times (B, K) in [0, 1] -> (B, K, D)."""

    def __init__(self, frequencies: int, width: int):
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor) -> Tensor:
        half = self.frequencies // 2
        scale = 10000.0 ** (-torch.arange(half, device=times.device, dtype=torch.float32) / half)
        angles = times.float().unsqueeze(-1) * scale
        first: nn.Linear = self.mlp[0]  # type: ignore[assignment]
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(first.weight.dtype))
