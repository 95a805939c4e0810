"""TA-Tok (arXiv 2506.18898), the text-aligned vision tokenizer: pixels -> codes, differentiable. It decodes to no pixels.

A SigLIP tower, whose states after the last layer but one are projected and compared with a codebook, which is itself the
projection of a table (SimVQ). Both are normalized, so the code is the one of the largest cosine. The official gradient goes
straight through to the latent; here it is that of a soft choice among the nearest codes, as in all families that read codes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig
from transformers.initialization import no_init_weights
from transformers.models.siglip.modeling_siglip import SiglipEncoder, SiglipVisionEmbeddings

from megaunigame.errors import ModelError
from megaunigame.models.recompute import through
from megaunigame.models.vqgan.code_tokenizer import CodeEncoder
from megaunigame.models.weights.settings_files import is_whole
from megaunigame.storage.foreign_text import quoted


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tokenizer."""

    codebook_size: int
    embed_dim: int
    """C: width of a row of the codebook."""
    hidden_size: int
    intermediate_size: int
    depth: int
    """Layers of the tower; the last one is stored and not used."""
    num_attention_heads: int
    image_size: int
    """Side of a picture, in pixels."""
    patch_size: int

    def check(self) -> None:
        """Raises ModelError for a value that is not legal."""
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if not is_whole(value) or value < 1:
                raise ModelError(f"vq_config.{entry.name} must be a whole number, 1 or more; got {quoted(value)}.")
        if self.image_size < self.patch_size:
            raise ModelError(f"vq_config.image_size={self.image_size} is below vq_config.patch_size={self.patch_size}.")
        if self.hidden_size % self.num_attention_heads:
            raise ModelError(
                f"vq_config.hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}."
            )

    @property
    def side(self) -> int:
        """Codes along an edge of a picture."""
        return self.image_size // self.patch_size

    def tower(self) -> SiglipVisionConfig:
        """Its tower, as transformers describes it."""
        return SiglipVisionConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.depth,
            num_attention_heads=self.num_attention_heads,
            image_size=self.image_size,
            patch_size=self.patch_size,
        )


class VisionTokenizer(CodeEncoder):
    """Names of parameters are the official ones; they are not initialized."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        tower = config.tower()
        tower._attn_implementation = "sdpa"
        with no_init_weights():
            self.encoder = nn.ModuleDict({"embeddings": SiglipVisionEmbeddings(tower), "encoder": SiglipEncoder(tower)})
            self.encode_task_layer = nn.Sequential(nn.Linear(config.hidden_size, config.hidden_size), nn.Tanh())
            regularizer = nn.ModuleDict(
                {
                    "embedding": nn.Embedding(config.codebook_size, config.embed_dim),
                    "embedding_proj": nn.Linear(config.embed_dim, config.embed_dim),
                }
            )
            into = nn.Linear(config.hidden_size, config.embed_dim)
            self.bottleneck = nn.ModuleDict({"in_linear": into, "regularizer": regularizer})
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.bottleneck["in_linear"].weight.dtype  # type: ignore[return-value]

    def codebook(self) -> Tensor:
        """(V, C) float32, of length 1."""
        table = self.bottleneck["regularizer"]
        return F.normalize(table["embedding_proj"](table["embedding"].weight).float(), dim=-1)  # type: ignore[index,operator]

    def _latents(self, pixels: Tensor) -> Tensor:
        layers = self.encoder["encoder"].layers[:-1]  # type: ignore[index,union-attr]
        states = self.encoder["embeddings"](pixels.to(self.dtype))
        states = through([partial(layer, attention_mask=None) for layer in layers], states)  # type: ignore[union-attr]
        cells = F.normalize(self.bottleneck["in_linear"](self.encode_task_layer(states)).float(), dim=-1)
        side = isqrt(cells.shape[1])
        return cells.unflatten(1, (side, side)).permute(0, 3, 1, 2)
