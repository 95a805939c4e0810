"""From a measured curve to targets: a few bands of consecutive layers, one target and one delta each.

The paper quantizes by hand and reports that targets by band train better than the raw curve (arXiv 2511.22663). Here:

bands    the split into consecutive layers with the least squared error against the means of the bands (dynamic programming);
         their number is given, or the fewest, at most 6, whose error is at most .05 per layer (root mean square)
target   mean of the band, rounded to .05
delta    the first of .05, .1, .2 that is at least the distance of single samples and layers of the band from its target
         (root mean square); .2 beyond. Where the teacher itself scatters, the loss is soft over a wider range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from megaunigame.attention.targets import Target
from megaunigame.errors import ConfigError
from megaunigame.evaluation.attention.curves import Curve

GRID = 0.05
"""Targets are multiples of it; also the error per layer that bands may have."""
MOST_BANDS = 6
DELTAS = (0.05, 0.1, 0.2)
"""Those of the paper."""


def check_bands(bands: int, layers: int) -> None:
    """Raise ConfigError for more bands than layers."""
    if not 0 <= bands <= layers:
        raise ConfigError(f"{bands} bands of {layers} layers; give 1 to {layers}, or 0 to have their number chosen.")


def quantized(curve: Curve, bands: int = 0) -> list[Target]:
    """One target per layer; 0 bands: their number is chosen. Raises ConfigError for more bands than layers."""
    means, spreads = np.asarray(curve.mean), np.asarray(curve.spread)
    check_bands(bands, len(means))
    layer_targets: list[Target] = []
    for first, end in pairwise(split(means, bands or enough_bands(means))):
        target = round(round(means[first:end].mean() / GRID) * GRID, 2)
        off = np.sqrt(np.mean((means[first:end] - target) ** 2 + spreads[first:end] ** 2))
        delta = next((d for d in DELTAS if off <= d), DELTAS[-1])
        layer_targets += [Target(delta, target)] * (end - first)
    return layer_targets


def stretched(curve: Curve, layers: int) -> Curve:
    """The curve at the same relative depth of a model of this many layers, linear between the middles of measured layers."""
    measured = len(curve.mean)
    if layers == measured:
        return curve
    depths = (np.arange(layers) + 0.5) / layers
    known = (np.arange(measured) + 0.5) / measured
    mean, spread, first = (np.interp(depths, known, line).tolist() for line in (curve.mean, curve.spread, curve.first))
    return Curve(mean, spread, first, curve.samples)


def enough_bands(values: Sequence[float] | np.ndarray) -> int:
    """The fewest bands whose root mean square error is at most `GRID`, and no more than `MOST_BANDS`."""
    values = np.asarray(values)
    most = min(MOST_BANDS, len(values))
    allowed = GRID**2 * len(values)
    return next((count for count in range(1, most) if squared_error(values, split(values, count)) <= allowed), most)


def split(values: Sequence[float] | np.ndarray, count: int) -> list[int]:
    """Borders [0, ..., L] of the `count` bands of `values` (L,) with the least squared error against their means."""
    values = np.asarray(values, dtype=np.float64)
    length = len(values)
    cost = np.full((length + 1, length + 1), np.inf)
    for first in range(length):
        for end in range(first + 1, length + 1):
            cost[first, end] = np.square(values[first:end] - values[first:end].mean()).sum()
    best = cost[0]  # best[end]: least error of the first `end` values in the bands so far
    begins: list[np.ndarray] = []  # for each band but the first: where it begins when it ends at `end`
    for _ in range(count - 1):
        total = best[:, None] + cost
        begins.append(total.argmin(0))
        best = total.min(0)
    borders = [length]
    for begin in reversed(begins):
        borders.append(int(begin[borders[-1]]))
    return [0, *reversed(borders)]


def squared_error(values: np.ndarray, borders: Sequence[int]) -> float:
    """Sum of squared distances of the values from the means of their bands."""
    return float(sum(np.square(values[a:b] - values[a:b].mean()).sum() for a, b in pairwise(borders)))


def provenance(curves: Mapping[str, Curve], model: str, shards: str, layers: int) -> str:
    """Comment of a targets file for this many layers: the measured curve, layer by layer."""
    lines = [f"Measured on {model} with {shards}; made by megaunigame measure-attention."]
    for name, curve in curves.items():
        if len(curve.mean) != layers:
            lines.append(f"{name}: stretched from the {len(curve.mean)} layers of that model to {layers}, by relative depth")
        lines.append(f"{name}: {curve.samples} samples; mean +- spread over samples, first token, by layer")
        numbers = zip(curve.mean, curve.spread, curve.first, strict=True)
        lines += [f"  {layer:2d}  {m:.3f} +- {s:.3f}  {f:.3f}" for layer, (m, s, f) in enumerate(numbers)]
    return "\n".join(lines)
