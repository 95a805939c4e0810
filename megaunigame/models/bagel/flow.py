"""Flow matching: times, the straight path between latents and noise, and steps from noise to latents.

x_t = (1 - t) z + t noise        velocity = noise - z        so z = x_t - t velocity
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megaunigame.models.row_noise import normal, of_keys

FIXED_SEED = 0


def shifted(u: Tensor, shift: float) -> Tensor:
    """Times in [0, 1] moved towards 1 by a `shift` above 1."""
    return shift * u / (1 + (shift - 1) * u)


def mix(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """(B, ...) latents, noise of the same shape and (B,) times -> noisy latents."""
    at = t.view(-1, *[1] * (clean.dim() - 1))
    return (1 - at) * clean + at * noise


def clean_from(noisy: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """One-step prediction of the clean latents, with a constant velocity."""
    return noisy - t.view(-1, *[1] * (noisy.dim() - 1)) * velocity


def fixed_noise(like: Tensor) -> Tensor:
    """The same noise for every row of `like` (B, ...)."""
    generator = torch.Generator().manual_seed(FIXED_SEED)
    noise = torch.randn(like.shape[1:], generator=generator).to(like.device, non_blocking=True)
    return noise.expand_as(like)


def training_draw(latents: Tensor) -> tuple[Tensor, Tensor]:
    """u (B,), sigmoids of normal numbers, and noise, from torch's generator."""
    return torch.randn(len(latents), device=latents.device).sigmoid(), torch.randn_like(latents)


def evaluation_draw(keys: Sequence[str], latents: Tensor) -> tuple[Tensor, Tensor]:
    """The same for the sample of a key in any batch on any rank."""
    generators = of_keys(keys)
    drawn = normal((len(keys),), generators).sigmoid(), normal(tuple(latents.shape), generators)
    u, noise = (part.to(latents.device, non_blocking=True) for part in drawn)
    return u, noise


def sampling_times(points: int, shift: float) -> list[float]:
    """`points` times from 1 down to 0; the steps are between them."""
    even = (1 - point / (points - 1) for point in range(points))
    return [shift * t / (1 + (shift - 1) * t) for t in even]


def solve(velocity: Callable[[Tensor, float], Tensor], start: Tensor, times: list[float]) -> Tensor:
    """Noise (B, ...) -> latents, by Euler steps from each of `times` to the next."""
    latents = start
    for t, after in zip(times, times[1:], strict=False):
        latents = latents - velocity(latents, t) * (t - after)
    return latents
