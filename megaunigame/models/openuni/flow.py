"""Flow matching: noise levels, the straight path between latents and noise, and the solver from noise to latents.

z_sigma = (1 - sigma) z + sigma noise        velocity = noise - z        so z = z_sigma - sigma velocity
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megaunigame.models.openuni.parts import diffusers_class

if TYPE_CHECKING:
    from diffusers import DPMSolverMultistepScheduler

LEVELS = 1000
"""Discrete noise levels. The network reads sigma * LEVELS as its time."""
EVALUATION_SEED = 0


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


def evaluation_draw(latents: Tensor) -> tuple[Tensor, Tensor]:
    """u (B,) evenly spread and fixed noise, the same for all conditions and checkpoints that are compared."""
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device, non_blocking=True)
    rows = torch.arange(len(latents), device=latents.device)
    return (rows + 0.5) / len(latents), noise


def solver(shift: float, steps: int) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ (2M) on the levels of a flow, as in SANA's pipeline: diffusers' scheduler, ready to step."""
    kind = diffusers_class("DPMSolverMultistepScheduler")
    scheduler = kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)  # else it searches all times for the first one
    return scheduler


def solve(velocity: Callable[[Tensor, Tensor], Tensor], start: Tensor, shift: float, steps: int) -> Tensor:
    """Noise (B, C, h, w) -> latents, by `steps` calls of velocity(noisy, times (B,))."""
    scheduler = solver(shift, steps)
    latents = start
    for time in scheduler.timesteps:
        times = time.to(latents.device).expand(len(latents))
        latents = scheduler.step(velocity(latents, times), time, latents, return_dict=False)[0]
    return latents
