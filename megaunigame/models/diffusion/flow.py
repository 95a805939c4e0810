"""Flow matching: noise levels, the straight path between latents and noise, and the solver from noise to latents.

z_sigma = (1 - sigma) z + sigma noise        velocity = noise - z        so z = z_sigma - sigma velocity
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from megaunigame.errors import ModelError
from megaunigame.models.diffusion.modules import diffusers_class
from megaunigame.models.row_noise import normal, of_keys, uniform
from megaunigame.models.weights.settings_files import is_number, is_whole
from megaunigame.storage.foreign_text import quoted

if TYPE_CHECKING:
    from diffusers import DPMSolverMultistepScheduler

LEVELS = 1000
"""Discrete noise levels. The network reads sigma * LEVELS as its time."""
Velocity: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(noisy latents (B, C, h, w), times (B,) in 0..LEVELS) -> (B, C, h, w)."""


@dataclass(frozen=True)
class Flow:
    """Noise levels: z_sigma = (1 - sigma) z + sigma noise. A shift moves uniform sigmas towards 1:
    shift sigma / (1 + (shift - 1) sigma)."""

    train_shift: float = 1.0
    """The official training is at 1: it passes the settings of a sampler to another scheduler, which ignores its shift."""
    sample_shift: float = 3.0
    sample_steps: int = 20
    decode_sigma: float = 0.5
    """Noise level from which `decode` predicts the change by a perturbation in one step."""

    def check(self) -> None:
        """Raises ModelError for a value that is not legal."""
        for entry in dataclasses.fields(self):
            if not is_number(value := getattr(self, entry.name)):
                raise ModelError(f"flow.{entry.name} must be a number; got {quoted(value)}.")
        if min(self.train_shift, self.sample_shift) <= 0:
            raise ModelError(f"flow: shifts must be above 0; got {self.train_shift} and {self.sample_shift}.")
        if not is_whole(self.sample_steps) or self.sample_steps < 1:
            raise ModelError(f"flow.sample_steps must be a whole number, at least 1; got {self.sample_steps}.")
        if not 0 < self.decode_sigma <= 1:
            raise ModelError(f"flow.decode_sigma must lie in (0, 1]; got {self.decode_sigma}.")


def train_sigmas(shift: float, device: torch.device | str = "cpu") -> Tensor:
    """(LEVELS,) float32, from 1 down to about 1 / LEVELS; `shift` above 1 moves them towards 1."""
    sigmas = torch.arange(LEVELS, 0, -1, dtype=torch.float32, device=device) / LEVELS
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def levels(u: Tensor, shift: float) -> Tensor:
    """(B,) numbers in [0, 1) -> (B,) sigmas: 0 draws the largest level."""
    return train_sigmas(shift, u.device)[(u * LEVELS).long()]


def mix(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """(B, C, h, w) latents, noise of the same shape (or (1, C, h, w)) and (B,) levels -> noisy latents."""
    level = sigma.view(-1, 1, 1, 1)
    return (1 - level) * clean + level * noise


def clean_from(noisy: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """One-step prediction of the clean latents, with a constant velocity: (B, C, h, w)."""
    return noisy - sigma.view(-1, 1, 1, 1) * velocity


def evaluation_draw(keys: Sequence[str], latents: Tensor) -> tuple[Tensor, Tensor]:
    """u (B,) in [0, 1) and noise: the same for the sample of a key in any batch on any rank."""
    generators = of_keys(keys)
    drawn = uniform((len(keys),), generators), normal(tuple(latents.shape), generators)
    u, noise = (part.to(latents.device, non_blocking=True) for part in drawn)
    return u, noise


def solver(shift: float, steps: int) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ (2M) on the levels of a flow, as in SANA's pipeline: diffusers' scheduler, ready to step."""
    kind = diffusers_class("DPMSolverMultistepScheduler")
    scheduler = kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)  # else it searches all times for the first one
    return scheduler


def solve(velocity: Velocity, start: Tensor, shift: float, steps: int) -> Tensor:
    """Noise (B, C, h, w) -> latents, by `steps` calls of velocity(noisy, times (B,))."""
    scheduler = solver(shift, steps)
    latents = start
    for time in scheduler.timesteps:
        times = time.to(latents.device).expand(len(latents))
        latents = scheduler.step(velocity(latents, times), time, latents, return_dict=False)[0]
    return latents


def euler(velocity: Velocity, start: Tensor, shift: float, steps: int) -> Tensor:
    """Noise (B, C, h, w) -> latents, by `steps` straight steps between evenly spread levels, which `shift` then moves."""
    even = [(steps - i) / steps for i in range(steps + 1)]
    sigmas = [shift * level / (1 + (shift - 1) * level) for level in even]
    latents = start
    for sigma, following in pairwise(sigmas):
        times = torch.full((len(latents),), sigma * LEVELS, device=latents.device)
        latents = latents + (following - sigma) * velocity(latents, times)
    return latents
