"""A codebook of unit vectors, updated by running means instead of gradients.

The rows have unit norm after every change. Then the nearest row and the row of largest cosine are the same for a latent of any
length, so transformers' encoder (which does not normalize) and ours agree on every code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEAD_BELOW = 0.25


def perplexity(counts: Tensor) -> float:
    """exp of the entropy of the shares: V when all codes are equally frequent, 1 when only one is used."""
    return float(torch.special.entr(counts / counts.sum()).sum().exp())


class RunningCodebook(nn.Module):
    """Running counts and sums of the latents assigned to each of V codes of width D.

    rows (V, D) unit norm; counts (V,); sums (V, D). Latents given to every method are (M, D) with unit norm.
    """

    rows: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, width: int, decay: float = 0.97):
        super().__init__()
        self.decay = decay
        self.register_buffer("rows", F.normalize(torch.randn(codes, width, generator=torch.Generator().manual_seed(0))))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.rows.clone())

    def assign(self, latents: Tensor) -> Tensor:
        """Code of each latent (M,), by largest cosine."""
        return (latents @ self.rows.T).argmax(dim=1)

    @torch.no_grad()
    def fit(self, latents: Tensor, batches: int, generator: torch.Generator, iterations: int = 15) -> None:
        """Spherical k-means on the latents of `batches` training batches; empty codes take random latents."""
        codes = self.rows.shape[0]
        self.rows.copy_(latents[torch.randperm(len(latents), generator=generator)[:codes]])
        for _ in range(iterations):
            counts, sums = self._totals(latents, self.assign(latents))
            random = latents[torch.randint(len(latents), (codes,), generator=generator)]
            self.rows.copy_(F.normalize(torch.where(counts[:, None] > 0, sums, random)))
        counts, sums = self._totals(latents, self.assign(latents))
        # Running totals are per batch, so the totals of the fit are scaled to one batch.
        self.counts.copy_(counts / batches)
        self.sums.copy_(sums / batches)

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor) -> None:
        """Move every row towards the mean of its latents."""
        counts, sums = self._totals(latents, codes)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        self.rows.copy_(F.normalize(self.sums / self.counts.clamp(min=1e-5)[:, None]))

    @torch.no_grad()
    def restart_dead(self, latents: Tensor, generator: torch.Generator) -> int:
        """Replace rows that hardly any latent chooses by random latents; returns their number."""
        dead = self.counts < DEAD_BELOW
        random = latents[torch.randint(len(latents), (len(dead),), generator=generator)]
        self.rows[dead] = random[dead]
        self.sums[dead] = random[dead]
        self.counts[dead] = 1.0
        return int(dead.sum())

    def perplexity(self) -> float:
        return perplexity(self.counts)

    def _totals(self, latents: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        counts = torch.zeros_like(self.counts).index_add_(0, codes, torch.ones_like(codes, dtype=self.counts.dtype))
        return counts, torch.zeros_like(self.sums).index_add_(0, codes, latents)
