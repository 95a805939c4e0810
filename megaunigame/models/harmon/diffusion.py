"""The diffusion of single tokens: a cosine schedule of 1000 levels, noise predicted, variance learned (arXiv 2102.09672).

With a_t the product of (1 - beta) up to level t:

    x_t = sqrt(a_t) x + sqrt(1 - a_t) noise        so x = x_t / sqrt(a_t) - sqrt(1 / a_t - 1) noise

The network gives noise and v; v in [-1, 1] interpolates the log variance of a step between its two bounds. All of it is
float32, of tables in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

LEVELS = 1000
LARGEST_BETA = 0.999
OFFSET = 0.008
PIXEL_STEP = 1 / 255
"""Half the width of the interval whose probability the loss of level 0 takes, as for pixels in [-1, 1]."""
EDGE = 0.999
LEAST_PROBABILITY = 1e-12

Predict = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""x_t (..., C) and levels of training (...) -> noise and v, (..., C) each."""


class Tables(NamedTuple):
    """One number for each step of a process, float32."""

    level: Tensor
    """int64: the level of training that the step has."""
    root: Tensor
    """sqrt(a)."""
    noise_root: Tensor
    """sqrt(1 - a)."""
    inverse_root: Tensor
    """sqrt(1 / a)."""
    inverse_noise: Tensor
    """sqrt(1 / a - 1)."""
    clean_share: Tensor
    """Factor of x in the mean of the step before."""
    noisy_share: Tensor
    """Factor of x_t in that mean."""
    log_least: Tensor
    """Log of the least variance: that of the posterior; at the first step, where it is 0, that of the second."""
    log_most: Tensor
    """Log of beta."""


class Step(NamedTuple):
    """What a prediction says about one step."""

    clean: Tensor
    """x."""
    mean: Tensor
    log_variance: Tensor


def betas() -> Tensor:
    """(LEVELS,) float64."""

    def kept(share: float) -> float:
        return math.cos((share + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2

    values = [min(1 - kept((level + 1) / LEVELS) / kept(level / LEVELS), LARGEST_BETA) for level in range(LEVELS)]
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def kept_shares() -> Tensor:
    """a, (LEVELS,) float64."""
    return (1 - betas()).cumprod(0)


def chosen_levels(steps: int) -> list[int]:
    """`steps` levels of training at equal distances, the first and the last included (one step: level 0)."""
    stride = (LEVELS - 1) / (steps - 1) if steps > 1 else 1.0
    at, chosen = 0.0, []
    for _ in range(steps):  # summed up, as in the official code: a product may round otherwise
        chosen.append(round(at))
        at += stride
    return sorted(set(chosen))


def tables(steps: int, device: torch.device) -> Tables:
    """Of the process with `steps` of the LEVELS levels; made once for each device that computes."""
    return _made(steps, device) if device.type == "meta" else _kept(steps, device)


@cache
def _kept(steps: int, device: torch.device) -> Tables:
    return _made(steps, device)


def _made(steps: int, device: torch.device) -> Tables:
    levels = list(range(LEVELS)) if steps == LEVELS else chosen_levels(steps)
    at = torch.tensor(levels, device="cpu")
    kept = kept_shares()[at]
    before = torch.cat([kept.new_ones(1), kept[:-1]])
    beta = betas() if steps == LEVELS else 1 - kept / before
    variance = beta * (1 - before) / (1 - kept)
    least = torch.cat([variance[1:2], variance[1:]]) if len(levels) > 1 else beta
    columns = (
        kept.sqrt(),
        (1 - kept).sqrt(),
        (1 / kept).sqrt(),
        (1 / kept - 1).sqrt(),
        beta * before.sqrt() / (1 - kept),
        (1 - before) * (1 - beta).sqrt() / (1 - kept),
        least.log(),
        beta.log(),
    )
    return Tables(*(column.to(device, non_blocking=True) for column in (at, *(column.float() for column in columns))))


def noisy(clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """(..., C), (..., C) and (...) levels of training -> x_t."""
    table = tables(LEVELS, clean.device)
    return table.root[levels].unsqueeze(-1) * clean + table.noise_root[levels].unsqueeze(-1) * noise


def step_of(table: Tables, at: Tensor, x: Tensor, noise: Tensor, v: Tensor) -> Step:
    """The step `at` (...) of a process, from x_t and a prediction, (..., C) each."""
    number = [column[at].unsqueeze(-1) for column in table]
    _, _, _, inverse_root, inverse_noise, clean_share, noisy_share, log_least, log_most = number
    clean = inverse_root * x - inverse_noise * noise
    share = (v + 1) / 2
    return Step(clean, clean_share * clean + noisy_share * x, share * log_most + (1 - share) * log_least)


class TokenLoss(NamedTuple):
    """Losses of tokens, (...) each."""

    squared: Tensor
    """Mean over channels of (noise - predicted noise)^2."""
    bits: Tensor
    """Of the variational bound; its gradient reaches the variance alone."""


def token_losses(clean: Tensor, x: Tensor, levels: Tensor, noise: Tensor, predicted: Tensor, v: Tensor) -> TokenLoss:
    """x_t of `clean` and `noise`, (..., C), at `levels` (...), and what the network says about it."""
    table = tables(LEVELS, clean.device)
    step = step_of(table, levels, x, predicted.detach(), v)
    true_mean = table.clean_share[levels].unsqueeze(-1) * clean + table.noisy_share[levels].unsqueeze(-1) * x
    true_log = table.log_least[levels].unsqueeze(-1)
    kl = 0.5 * (
        step.log_variance
        - true_log
        - 1
        + (true_log - step.log_variance).exp()
        + (true_mean - step.mean).square() * (-step.log_variance).exp()
    )
    first = -_log_likelihood(clean, step.mean, 0.5 * step.log_variance)
    bits = torch.where(levels == 0, first.mean(-1), kl.mean(-1)) / math.log(2.0)
    return TokenLoss((noise - predicted).square().mean(-1), bits)


def _log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability of the interval around x, by a tanh for the normal distribution function, as in the official code."""
    inverse = (-log_scale).exp()
    upper, lower = (_normal_cdf(inverse * (x - mean + side)) for side in (PIXEL_STEP, -PIXEL_STEP))

    def log(value: Tensor) -> Tensor:
        return value.clamp_min(LEAST_PROBABILITY).log()

    return torch.where(x < -EDGE, log(upper), torch.where(x > EDGE, log(1 - lower), log(upper - lower)))


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def denoise(predict: Predict, start: Tensor, noises: Iterator[Tensor], steps: int, temperature: float) -> Tensor:
    """Noise (..., C) -> tokens, in `steps` steps, each with its own noise (..., C), times `temperature`."""
    table, x = tables(steps, start.device), start
    for at in reversed(range(len(table.level))):
        place = torch.full(x.shape[:-1], at, device=x.device)
        step = step_of(table, place, x, *predict(x, table.level[place]))
        noise = next(noises)
        x = step.mean if at == 0 else step.mean + (0.5 * step.log_variance).exp() * noise * temperature
    return x


def clean_from(x: Tensor, noise: Tensor, level: int) -> Tensor:
    """x of x_t at one level: one-step prediction."""
    table = tables(LEVELS, x.device)
    return table.inverse_root[level] * x - table.inverse_noise[level] * noise
