"""Base class of families whose pictures are latents of a deep-compression autoencoder, which a SANA transformer draws under the
condition of hidden states of the language model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megaunigame.models.base import DecodedPictures, clamped
from megaunigame.models.causal.model import CausalModel
from megaunigame.models.diffusion import autoencoding, flow

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, SanaTransformer2DModel

DECODE_SEED = 0


class LatentPictures(CausalModel):
    """The configuration has `flow`, and `latent_shape` (C, h, w)."""

    has_codes = False

    @property
    @abstractmethod
    def dit(self) -> SanaTransformer2DModel:
        """The transformer."""

    @property
    @abstractmethod
    def autoencoder(self) -> AutoencoderDC:
        """The frozen autoencoder."""

    @abstractmethod
    def condition(self, hidden: Tensor) -> Tensor:
        """(B, N, D) hidden states -> (B, N, caption width), the condition of the transformer."""

    def solve(self, velocity: flow.Velocity, start: Tensor) -> Tensor:
        """Noise (B, C, h, w) -> latents, by one call of `velocity` per step."""
        return flow.solve(velocity, start, self.config.flow.sample_shift, self.config.flow.sample_steps)

    def draw(self, keys: Sequence[str], latents: Tensor) -> tuple[Tensor, Tensor]:
        """u (B,) and noise for latents (B, C, h, w): random in training; in eval mode those of the samples' keys."""
        if self.training:
            return torch.rand(len(latents), device=latents.device), torch.randn_like(latents)
        return flow.evaluation_draw(keys, latents)

    def velocity_errors(self, latents: Tensor, u: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
        """(B, C, h, w): squared errors of the velocity at the levels that u (B,) in [0, 1) draws,
        (velocity(z_sigma, sigma, condition) - (noise - z))^2."""
        sigma = flow.levels(u, self.config.flow.train_shift)
        velocity = self.velocity(flow.mix(latents, noise, sigma), sigma * flow.LEVELS, condition)
        return (velocity - (noise - latents)).square()

    def velocity(self, noisy: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        """(B, C, h, w) latents and (B,) times in 0..LEVELS -> (B, C, h, w) float32."""
        times = times * self.dit.config.timestep_scale
        # A tuple, because the engine hooks the tensors of tuples and would miss those of diffusers' output class.
        return self.dit(noisy.to(condition.dtype), condition, timestep=times, return_dict=False)[0].float()

    @torch.no_grad()
    def encode_target(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w) float32 latents of about unit variance. No gradient."""
        return autoencoding.encode(self.autoencoder, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W), about [-1, 1], not clamped; differentiable."""
        return autoencoding.decode(self.autoencoder, latents)

    @torch.no_grad()
    def decode_target(self, target: Tensor) -> Tensor:
        """(B, C, h, w) latents -> (B, 3, H, W) in [-1, 1]."""
        return self.decode_latents(target).clamp(-1, 1)

    def decode(self, hidden: Tensor, delta: Tensor | None = None, anchor: Tensor | None = None) -> DecodedPictures:
        """(B, N, D) hidden states of the generate pass, plus `delta` -> pixels (B, 3, H, W) in [-1, 1], differentiable.

        One-step prediction of the clean latents from one noise level. Without `anchor` that level is pure noise. With
        `anchor` (the target latents z) it is `flow.decode_sigma` between z and noise, and the decoded latents are
        z + (clean(hidden + delta) - clean(hidden)). The noise is fixed, so all differences come from the hidden states. All of
        this is in float32: the difference of two bfloat16 networks is rounding where the perturbation is small.
        """
        hidden = hidden.float()
        clean = self._clean(hidden if delta is None else hidden + delta, anchor)
        if delta is None:
            plain = clean.detach()
        else:
            with torch.no_grad():
                plain = self._clean(hidden, anchor)
        change = clean - plain
        reference = plain if anchor is None else anchor
        changed = (change.detach().flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)).clamp(0, 1)
        latents = clean if anchor is None else anchor + change
        return DecodedPictures(clamped(self.decode_latents(latents)), changed)

    def _clean(self, hidden: Tensor, anchor: Tensor | None) -> Tensor:
        """(B, N, D) -> (B, C, h, w) float32: one-step prediction."""
        generator = torch.Generator().manual_seed(DECODE_SEED)
        noise = torch.randn(1, *self.config.latent_shape, generator=generator).to(hidden.device, non_blocking=True)
        level = 1.0 if anchor is None else self.config.flow.decode_sigma
        sigma = torch.full((len(hidden),), level, device=hidden.device)
        noisy = noise.expand(len(hidden), -1, -1, -1) if anchor is None else flow.mix(anchor, noise, sigma)
        return flow.clean_from(noisy, self.velocity(noisy, sigma * flow.LEVELS, self.condition(hidden)), sigma)

    def sample_latents(self, start: Tensor, condition: Tensor, guidance: float) -> Tensor:
        """Noise (B, C, h, w) and conditions (B or, with guidance, B + 1, N, width) -> latents (B, C, h, w).

        Velocities are u + guidance * (c - u), u that of the last condition; guidance 1: only c.
        """
        rows = len(start)

        def guided(noisy: Tensor, times: Tensor) -> Tensor:
            self.leave_point()
            if guidance == 1:
                return self.velocity(noisy, times, condition)
            both = torch.cat([condition[:rows], condition[rows:].expand(rows, -1, -1)])
            conditional, without = self.velocity(noisy.repeat(2, 1, 1, 1), times.repeat(2), both).chunk(2)
            return without + guidance * (conditional - without)

        return self.solve(guided, start)
