"""Which codes of a picture are masked: schedules, the draw of a training row, and what stays masked while a picture is drawn.

A share of the codes is masked, at random places; the model predicts them all at once. `schedule(t)` is that share, falling from
1 at t = 0 to about 0 at t = 1 (arXiv 2202.04200).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megaunigame.models.base import Generators
from megaunigame.models.row_noise import of_keys, uniform

LEAST_SHARE, LEAST_PROBABILITY = 1e-6, 1e-20
REACH = 3.0
"""The sigmoid schedule is that function between -REACH and REACH."""


def _cosine(t: Tensor) -> Tensor:
    return torch.cos(t * math.pi * 0.5)


def _linear(t: Tensor) -> Tensor:
    return (1 - t).clamp(LEAST_SHARE, 1)


def _square(t: Tensor) -> Tensor:
    return (1 - t**2).clamp(LEAST_SHARE, 1)


def _sigmoid(t: Tensor) -> Tensor:
    first, last = (torch.sigmoid(torch.tensor(end)) for end in (-REACH, REACH))
    return ((last - torch.sigmoid(2 * REACH * t - REACH)) / (last - first)).clamp(LEAST_SHARE, 1)


SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": _cosine,
    "linear": _linear,
    "pow2.0": _square,
    "sigmoid": _sigmoid,
}
"""Name, as in the settings of a release -> t in [0, 1] (B,) to the share of masked codes (B,)."""


def masked_counts(schedule: str, t: Tensor, codes: int) -> Tensor:
    """t (B,) -> (B,) float32: how many of `codes` are masked in training, at least one."""
    return (codes * SCHEDULES[schedule](t)).round().clamp_min(1)


def masked_places(counts: Tensor, scores: Tensor) -> Tensor:
    """(B,) counts, (B, N) random numbers -> (B, N) bool, in each row as many as its count."""
    return scores.argsort(dim=1) < counts.unsqueeze(1)


def training_draw(rows: int, codes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """t (B,) and scores (B, N), uniform in [0, 1), from torch's generator of the device."""
    return torch.rand(rows, device=device), torch.rand(rows, codes, device=device)


def evaluation_draw(keys: Sequence[str], codes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same for the sample of a key in any batch on any rank."""
    drawn = uniform((len(keys), 1 + codes), of_keys(keys)).to(device, non_blocking=True)
    return drawn[:, 0], drawn[:, 1:]


def kept_masked(schedule: str, step: int, steps: int, unknown: Tensor) -> Tensor:
    """(B, 1): how many of the codes, of which `unknown` (B, N) are masked, stay so after step number `step` (from 0).

    At least one, so the last step draws a code too; and at least one fewer than before, as long as there is another.
    """
    before = unknown.sum(1, keepdim=True)
    return (before - 1).clamp(max=masked_after(schedule, step, steps, unknown.shape[1])).clamp_min(1)


def masked_after(schedule: str, step: int, steps: int, codes: int) -> int:
    """How many of `codes` the schedule leaves masked after step number `step` (from 0)."""
    # In float32, as in the official code: in more precision, some products are just below a whole number.
    return int((codes * SCHEDULES[schedule](torch.tensor((step + 1) / steps))).floor())


def least_confident(probabilities: Tensor, counts: Tensor, noise: Tensor | float = 0.0) -> Tensor:
    """(B, N) probabilities of the chosen codes -> (B, N) bool: the `counts` (B, 1) of least log probability plus `noise`."""
    confidence = probabilities.clamp_min(LEAST_PROBABILITY).log() + noise
    return confidence < confidence.sort(dim=1).values.gather(1, counts)


def gumbel(shape: tuple[int, ...], generator: Generators) -> Tensor:
    """(B, ...): standard Gumbel noise, drawn on the device of the generators."""
    return -(-uniform(shape, generator).clamp_min(LEAST_PROBABILITY).log()).clamp_min(LEAST_PROBABILITY).log()
