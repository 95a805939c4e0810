"""A head whose weight is the token embedding's: one parameter, with the sum of both gradients."""

from __future__ import annotations

from typing import Any

from torch import nn

from megaunigame.models.causal.head import TokenHead


class TiedHead(TokenHead):
    """The parameter is registered in both modules, so that the engine gathers it for either. It has one name, the embedding's:
    the head adds none to a state dict."""

    def __init__(self, embedding: nn.Embedding):
        nn.Module.__init__(self)
        self.in_features, self.out_features = embedding.embedding_dim, embedding.num_embeddings
        self.weight = embedding.weight
        self.register_parameter("bias", None)

    def _save_to_state_dict(self, *_: Any) -> None:
        """Nothing."""

    def _load_from_state_dict(self, *_: Any) -> None:
        """Nothing: the embedding loads it."""
