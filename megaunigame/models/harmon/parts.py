"""The modules of a Harmon: transformers' Qwen2, a masked autoencoder, and two projectors between them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Model
from transformers.initialization import no_init_weights

from megaunigame.models.as_given import compute_as_given
from megaunigame.models.autoencoder_check import VQGAN_LEVELS, check_latents
from megaunigame.models.causal.head import ExpectedRows, TokenHead, TokenScores
from megaunigame.models.harmon.autoencoder import Autoencoder
from megaunigame.models.harmon.configuration import HarmonConfig
from megaunigame.models.harmon.mar import MaskedAutoencoder
from megaunigame.models.weights.renamed import RenamedWeights


class SharedHead(TokenHead):
    """A head whose matrix also embeds tokens: one parameter of one module, so that an engine gathers it in its forward."""

    def forward(  # type: ignore[override]
        self, hidden: Tensor, labels: Tensor | None = None, ids: slice | None = None, table: Tensor | None = None
    ) -> Tensor | TokenScores | ExpectedRows:
        """As `TokenHead`; for token ids (...), int64, in place of hidden states, their embeddings (..., D)."""
        return super().forward(hidden, labels, ids, table) if hidden.is_floating_point() else F.embedding(hidden, self.weight)


class SharedEmbedding(nn.Module):
    """In place of a language model's embedding: calls the head. It has no parameter and no child: a weight has one name."""

    def __init__(self, head: SharedHead):
        super().__init__()
        self._head = [head]  # in a list, so that it is not a child

    def forward(self, ids: Tensor) -> Tensor:
        return self._head[0](ids)  # type: ignore[no-any-return]


def trained_parts(config: HarmonConfig) -> dict[str, Any]:
    """Children of the model by name, their weights not initialized; built on the device of the surrounding context."""
    width, inner = config.width, config.mar["width"]
    with no_init_weights():
        head = SharedHead(width, config.llm.vocab_size)
        language_model = Qwen2Model(config.llm)
        language_model.embed_tokens = SharedEmbedding(head)  # type: ignore[assignment]
        parts = {
            "llm": nn.ModuleDict({"model": language_model, "lm_head": head}),
            "mar": MaskedAutoencoder(config),
            "proj_in": nn.Sequential(nn.Linear(inner, width), nn.SiLU(), nn.Linear(width, width)),
            "proj_out": nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, inner)),
        }
    for name in ("mar", "proj_out"):  # through which a perturbed state is decoded
        compute_as_given(parts[name])
    return parts


def check_stored(config: HarmonConfig, weights: RenamedWeights, frozen: RenamedWeights, path: str) -> None:
    """Raises ModelError, naming the setting, for an autoencoder with other latents. `frozen`: its weights."""
    levels = "autoencoder.multipliers", len(config.autoencoder["multipliers"])
    check_latents(frozen, "", VQGAN_LEVELS, ("autoencoder.latent_channels", config.channels), levels, path)


def autoencoder(config: HarmonConfig) -> Autoencoder:
    """The frozen autoencoder, its weights not loaded."""
    return Autoencoder(*config.autoencoder_sizes())
