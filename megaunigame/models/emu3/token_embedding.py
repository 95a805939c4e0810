"""The token embedding of Emu3, which also lets a gradient pass from tokens to what they were chosen by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenEmbedding(nn.Embedding):
    """An embedding whose parameter is called as in transformers."""

    def forward(  # type: ignore[override]
        self, ids: Tensor, neighbours: Tensor | None = None, shares: Tensor | None = None, at: slice | None = None
    ) -> Tensor:
        """(B, ...) token ids -> (B, ..., D).

        With `neighbours` (b, ..., K), the ids of tokens that might have stood in the rows `at`, and `shares` (b, ..., K), how
        near each was: the same values, and the gradient that the mean of the neighbours, weighed by their shares, would have
        towards the shares. Towards the weights it is that of plain tokens. All of it is in this forward, because a
        partitioned weight is whole nowhere else.
        """
        rows = super().forward(ids)
        if neighbours is None or shares is None or at is None:
            return rows
        around = F.embedding(neighbours, self.weight.detach())
        mean = (around * shares.unsqueeze(-1).to(around.dtype)).sum(-2)
        return torch.cat([rows[: at.start], rows[at] + (mean - mean.detach()), rows[at.stop :]])
