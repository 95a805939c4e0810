"""A token embedding with an optional gradient to what the tokens were chosen by, in a language model of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from megaunigame.models.causal.head import TokenHead


class TokenEmbedding(nn.Embedding):
    """An embedding whose parameter is called as in transformers."""

    def forward(  # type: ignore[override]
        self, ids: Tensor, neighbors: Tensor | None = None, shares: Tensor | None = None, at: slice | None = None
    ) -> Tensor:
        """(B, ...) token ids -> (B, ..., D).

        With `neighbors` (b, ..., K), ids of alternative tokens in the rows `at`, and `shares` (b, ..., K), their soft
        assignment: the same values; `shares` get the gradient of the weighted mean of the neighbors, the weights that of plain
        tokens. All in this forward, because a partitioned weight is gathered only here.
        """
        rows = super().forward(ids)
        if neighbors is None or shares is None or at is None:
            return rows
        around = F.embedding(neighbors, self.weight.detach())
        mean = (around * shares.unsqueeze(-1).to(around.dtype)).sum(-2)
        return torch.cat([rows[: at.start], rows[at] + (mean - mean.detach()), rows[at.stop :]])


def language_model_and_head(
    build: Callable[[Any], PreTrainedModel], config: Any, *, bias: bool = False
) -> tuple[PreTrainedModel, TokenHead]:
    """What `build` makes of its `config`, with an embedding of ours, and a head; weights are not initialized."""
    with no_init_weights():
        model = build(config)
        model.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        return model, TokenHead(config.hidden_size, config.vocab_size, bias)
