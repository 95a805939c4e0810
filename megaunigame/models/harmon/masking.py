"""Which tokens of a picture are masked, and the noise of the masked ones: draws of training, of evaluation, and of sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from megaunigame.models.harmon.diffusion import LEVELS
from megaunigame.models.row_noise import of_keys

SHARES = NormalDist(1.0, 0.25)
"""Of masked tokens, cut off below the least share and above 1."""
EVALUATION_QUANTILE = 0.5


class Draw(NamedTuple):
    """What is random in a generate pass. M tokens of every row are masked, V = N - M are visible."""

    masked: Tensor
    """(B, M) int64: their places, ascending."""
    seen: Tensor
    """(B, V) int64: the others, ascending."""
    levels: Tensor
    """(R, B, M) int64: a noise level for each of R copies of a masked token."""
    noise: Tensor
    """(R, B, M, C) float32."""


def masked_count(least: float, quantile: float, tokens: int) -> int:
    """M: the masked share at this quantile of its distribution, in tokens, rounded up; at least one."""
    below = SHARES.cdf(least)
    share = SHARES.inv_cdf(below + quantile * (0.5 - below))
    return min(tokens, max(1, math.ceil(tokens * share)))


def split(order: Tensor, masked: int) -> tuple[Tensor, Tensor]:
    """(B, N) orders of places -> (masked, seen): the first `masked` and the others, ascending."""
    return order[:, :masked].sort(dim=1).values, order[:, masked:].sort(dim=1).values


def host_number() -> float:
    """Uniform in [0, 1), from torch's generator of the CPU: a number of rows or places is needed on the host."""
    return torch.rand((), device="cpu").item()


def training_draw(latents: Tensor, least: float, copies: int, *, whole: bool = False) -> Draw:
    """For latents (B, N, C): one share for all rows, because rows of a batch are as long as each other; places, levels and
    noise are each row's own. From torch's generators of the device and, for the share, of the CPU. `whole`: mask everything.

    On the meta device, where sizes alone count, the least share: the longest rows.
    """
    rows, tokens, channels = latents.shape
    quantile = 0.0 if latents.is_meta else host_number()
    masked = tokens if whole else masked_count(least, quantile, tokens)
    places = split(torch.rand(rows, tokens, device=latents.device).argsort(1), masked)
    shape = copies, rows, masked
    levels = torch.randint(0, LEVELS, shape, device=latents.device)
    return Draw(*places, levels, torch.randn(*shape, channels, device=latents.device))


def evaluation_draw(keys: Sequence[str], latents: Tensor, least: float, copies: int) -> Draw:
    """The same for the sample of a key in any batch on any rank."""
    _, tokens, channels = latents.shape
    masked, drawn = masked_count(least, EVALUATION_QUANTILE, tokens), []
    for generator in of_keys(keys):
        order = torch.rand(tokens, generator=generator).argsort()
        levels = torch.randint(0, LEVELS, (copies, masked), generator=generator)
        drawn.append((order, levels, torch.randn(copies, masked, channels, generator=generator)))
    orders, levels, noise = (torch.stack(part).to(latents.device, non_blocking=True) for part in zip(*drawn, strict=True))
    return Draw(*split(orders, masked), levels.transpose(0, 1), noise.transpose(0, 1))


def still_masked(number: int, rounds: int, before: int, tokens: int) -> int:
    """How many of `tokens`, of which `before` are masked, stay so after round `number` (from 0) of sampling.

    At least one, and at least one fewer than before; in the last round all that are left are drawn.
    """
    if number == rounds - 1:
        return 0
    return max(1, min(before - 1, math.floor(tokens * math.cos(math.pi / 2 * (number + 1) / rounds))))
