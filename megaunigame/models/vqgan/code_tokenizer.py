"""Base class of frozen tokenizers whose pictures are grids of codes: pixels <-> codes, differentiable.

A family gives the latents, the decoder and which code a latent has. Distances are float32 for weights of any dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megaunigame.models.recompute import in_chunks

NEIGHBORS = 8
"""Likeliest codes in the soft assignment that carries the gradient from codes to latents."""
SCORES_AT_A_TIME = 1 << 27
"""Scores of cells and codes that are in memory at a time: 0.5 GiB."""


class CodeEncoder(nn.Module, ABC):
    """Pictures (B, 3, H, W) in [-1, 1] -> codes (B, h, w). Weights are frozen: gradients reach pixels, no weight."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the weights."""

    @abstractmethod
    def codebook(self) -> Tensor:
        """(V, C) float32: the rows that latents are compared with."""

    @abstractmethod
    def _latents(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w) float32, in one piece."""

    def scores(self, cells: Tensor, rows: Tensor) -> Tensor:
        """(n, C) latents, (V, C) rows -> (n, V): the larger, the nearer. Here minus the squared Euclidean distance."""
        return 2 * cells @ rows.T - rows.square().sum(1) - cells.square().sum(1, keepdim=True)

    def closeness(self, cells: Tensor, rows: Tensor) -> Tensor:
        """(..., 1, C) latents, (..., K, C) rows -> (..., K): logits of the soft assignment, differentiable.

        Here minus the squared distance in units of its mean: near the border between two codes a small step of the latent
        moves much of the share from one to the other, at the scale of the codebook.
        """
        distances = (cells - rows).square().sum(-1)
        return -distances / distances.detach().mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)

    def latents(self, pixels: Tensor) -> Tensor:
        """(B, C, h, w) float32, to be compared with the codebook."""
        return in_chunks(self._latents, pixels[0, 0].numel(), pixels)

    def nearest(self, latents: Tensor, count: int = 1) -> Tensor:
        """(B, C, h, w) latents -> (B, h, w, count) codes, the nearest first. No gradient."""
        rows = self.codebook().detach()
        grid = latents.detach().permute(0, 2, 3, 1)
        pieces = grid.flatten(0, 2).split(max(1, SCORES_AT_A_TIME // len(rows)))
        return torch.cat([self.scores(cells, rows).topk(count, dim=1).indices for cells in pieces]).view(*grid.shape[:3], count)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h, w) codes. No gradient."""
        return self.nearest(self.latents(pixels)).squeeze(-1)

    def neighbors(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, h, w, K) codes, the nearest first, and (B, h, w, K) their shares, differentiable.

        Farther codes are left out; their shares would be nearly 0.
        """
        latents = self.latents(pixels)
        codes = self.nearest(latents, min(NEIGHBORS, len(self.codebook())))
        cells = latents.permute(0, 2, 3, 1).unsqueeze(-2)
        return codes, self.closeness(cells, F.embedding(codes, self.codebook().detach())).softmax(-1)


class CodeTokenizer(CodeEncoder):
    """Pictures (B, 3, H, W) in [-1, 1] <-> codes (B, h, w), of `cell` x `cell` pixels each, and decoded from the codebook.

    Weights are frozen: gradients reach pixels and embeddings, no weight.
    """

    cell: int
    """Pixels of a code along an edge."""

    @abstractmethod
    def _decode(self, quant: Tensor) -> Tensor:
        """(B, C, h, w) rows of the codebook -> (B, 3, H, W), not clamped, in one piece."""

    def embed(self, codes: Tensor) -> Tensor:
        """(B, h, w) -> (B, C, h, w) float32: rows of the codebook."""
        return F.embedding(codes, self.codebook()).permute(0, 3, 1, 2)

    def decode_embeddings(self, quant: Tensor) -> Tensor:
        """(B, C, h, w) rows of the codebook -> (B, 3, H, W), not clamped."""
        return in_chunks(self._decode, quant[0, 0].numel() * self.cell**2, quant)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """(B, h, w) -> (B, 3, H, W), not clamped."""
        return self.decode_embeddings(self.embed(codes))

    def decode_mean(self, codes: Tensor, mean: Tensor) -> Tensor:
        """(B, h, w), (B, h, w, C) -> (B, 3, H, W): the picture of `codes`, with the gradient of `mean`, a mean of rows.

        Straight-through: the mean over all rows is far shorter than a row, so outside the decoder's training distribution;
        only its gradient is used.
        """
        return self.decode_embeddings(self.embed(codes).detach() + (mean - mean.detach()).permute(0, 3, 1, 2))
