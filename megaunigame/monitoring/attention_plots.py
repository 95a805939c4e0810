"""Attention by layer, from metrics: curves before and after a training, with targets; and a heat map of every layer during
training: layers upwards, steps to the right, color for the share.

If targets were logged, the color of the heat map is the distance from them: white on the target, blue below, red above. Next
to it: curves of the first and the last steps, on the same layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from megaunigame.monitoring import names
from megaunigame.monitoring.plots import INK, LINE, MUTED, Points, png, style
from megaunigame.storage.whole_files import write_whole

BEFORE, TARGET = "#9aa5b1", "#b3362b"
TITLES = {"generate": "generate: from the drawn picture to the text", "understand": "understand: from answers to the picture"}
COLUMNS = 200
"""At most this many columns; more steps are averaged."""
ENDS = 20
"""The curves show the mean of the first and the last twentieth of the columns."""
MISSING = "#eceff2"
LEAST_RANGE = 0.02
"""Colors span at least this share to either side of a target, so that noise stays pale."""


@dataclass(frozen=True)
class LayerCurve:
    """Shares of attention in [0, 1] of the measured layers; all (L,)."""

    layers: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    first: np.ndarray
    target: np.ndarray | None


def layers_of(metrics: Iterable[str]) -> dict[str, list[int]]:
    """Pass -> its layers with metrics `<pass>/layer_XX`, ascending."""
    found = (re.fullmatch(rf"(\w+)/{names.ATTENTION_LAYER}(\d\d|[1-9]\d\d+)", name) for name in metrics)
    layers: dict[str, list[int]] = {}
    for name, layer in sorted((match[1], int(match[2])) for match in found if match):
        layers.setdefault(name, []).append(layer)
    return layers


def read_curves(metrics: Mapping[str, float]) -> dict[str, LayerCurve]:
    """Pass -> its curve, from the metrics of an attention suite; empty for another suite."""
    curves = {}
    kinds = (names.ATTENTION_LAYER, names.ATTENTION_SPREAD, names.ATTENTION_FIRST_LAYER, names.ATTENTION_TARGET)
    for name, layers in layers_of(metrics).items():
        lines = [[metrics.get(names.attended(name, kind, layer), np.nan) for layer in layers] for kind in kinds]
        table = np.array(lines, dtype=np.float64)
        mean, spread, first, target = np.where(np.isfinite(table), table, np.nan)
        curves[name] = LayerCurve(np.array(layers), mean, spread, first, None if np.isnan(target).any() else target)
    return curves


def curves_figure(after: Mapping[str, LayerCurve], before: Mapping[str, LayerCurve] | None = None) -> Figure:
    """One plot per pass: mean and spread over samples by layer, targets as steps, the share of the first token faint."""
    figure = Figure(figsize=(5.2 * len(after), 3.3), dpi=150, layout="constrained")
    for index, (name, curve) in enumerate(after.items()):
        axes = figure.add_subplot(1, len(after), index + 1)
        if before and name in before:
            _draw(axes, before[name], BEFORE, "before")
        _draw(axes, curve, LINE, "after" if before else "mean ± spread over samples")
        axes.plot(curve.layers, curve.first, color=LINE, linewidth=1.1, linestyle=":", alpha=0.6, label="to the first token")
        if curve.target is not None:
            edges = np.append(curve.layers - 0.5, curve.layers[-1] + 0.5)
            axes.stairs(curve.target, edges, baseline=None, color=TARGET, linewidth=1.4, label="target")
        style(axes, TITLES.get(name, name), grid="y")
        axes.set_xlabel("layer", fontsize=8, color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(bottom=0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _draw(axes: Axes, curve: LayerCurve, color: str, label: str) -> None:
    low, high = np.clip(curve.mean - curve.spread, 0, 1), np.clip(curve.mean + curve.spread, 0, 1)
    axes.fill_between(curve.layers, low, high, color=color, alpha=0.18, linewidth=0)
    axes.plot(curve.layers, curve.mean, color=color, linewidth=1.8, marker="o", markersize=3, label=label)


def write_curves(path: Path, metrics: Mapping[str, float]) -> None:
    """Write the curves of one evaluation as PNG."""
    write_whole(path, png(curves_figure(read_curves(metrics))))


def per_layer(name: str) -> bool:
    """Whether a metric is shown in a heat map rather than as a curve."""
    group, _, rest = name.partition("/")
    what = rest.partition("/")[2]
    return f"{group}/" == names.ATTENTION and what.startswith((names.ATTENTION_LAYER, names.ATTENTION_TARGET))


def heat_figure(series: Mapping[str, Points]) -> Figure | None:
    """A heat map per pass, from metrics `attention/<pass>/layer_XX`; None when there are none."""
    attended = {name.removeprefix(names.ATTENTION): points for name, points in series.items() if per_layer(name)}
    passes = layers_of(attended)
    if not passes:
        return None
    heights = [1.3 + 0.09 * min(len(layers), 40) for layers in passes.values()]
    figure = Figure(figsize=(10.4, sum(heights) + 0.5), dpi=150, layout="constrained")
    grid = figure.add_gridspec(len(passes), 2, width_ratios=[3, 1], height_ratios=heights)
    for row, (name, layers) in enumerate(passes.items()):
        steps, shares = _matrix([attended[names.attended(name, names.ATTENTION_LAYER, layer)] for layer in layers])
        logged = [attended.get(names.attended(name, names.ATTENTION_TARGET, layer)) for layer in layers]
        targets = np.array([points[1][-1] for points in logged if points is not None])
        whole = len(targets) == len(layers)
        heat = figure.add_subplot(grid[row, 0])
        side = figure.add_subplot(grid[row, 1], sharey=heat)
        _heat(figure, heat, steps, shares, targets[:, None] if whole else None, TITLES.get(name, name))
        _ends(side, shares, targets if whole else None)
        every = -(-len(layers) // 12)
        heat.set_yticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
        side.tick_params(labelleft=False)
    return figure


def _matrix(lines: list[Points]) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the columns in steps, and (layers, columns) means; NaN where nothing was logged."""
    every = np.unique(np.concatenate([np.asarray(steps) for steps, _ in lines]))
    columns = min(COLUMNS, len(every))
    edges = np.linspace(every[0] - 0.5, every[-1] + 0.5, columns + 1)
    matrix = np.full((len(lines), columns), np.nan)
    for row, (steps, values) in enumerate(lines):
        place = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, columns - 1)
        counts = np.bincount(place, minlength=columns)
        sums = np.bincount(place, weights=values, minlength=columns)
        matrix[row, counts > 0] = sums[counts > 0] / counts[counts > 0]
    return edges, matrix


def _heat(figure: Figure, axes: Axes, steps: np.ndarray, shares: np.ndarray, targets: np.ndarray | None, title: str) -> None:
    layers = np.arange(shares.shape[0] + 1) - 0.5
    axes.set_facecolor(MISSING)
    if targets is None:
        mesh = axes.pcolormesh(steps, layers, shares, cmap="viridis", vmin=0, vmax=np.nanmax(shares), rasterized=True)
        label = "share of attention"
    else:
        off = shares - targets
        reach = max(LEAST_RANGE, float(np.nanmax(np.abs(off))))
        mesh = axes.pcolormesh(steps, layers, off, cmap="RdBu_r", vmin=-reach, vmax=reach, rasterized=True)
        label = "share - target"
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=18, format=PercentFormatter(1.0, decimals=0))
    bar.set_label(label, fontsize=8, color=MUTED)
    bar.ax.tick_params(labelsize=8, colors=MUTED, length=0)
    bar.outline.set_visible(False)
    style(axes, title)
    axes.set_xlabel("step", fontsize=8, color=MUTED)
    axes.set_ylabel("layer", fontsize=8, color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _ends(axes: Axes, shares: np.ndarray, targets: np.ndarray | None) -> None:
    layers = np.arange(len(shares))
    some = max(1, shares.shape[1] // ENDS)
    known = shares[:, ~np.isnan(shares).all(0)]
    if known.shape[1] > some:
        axes.plot(np.nanmean(known[:, :some], axis=1), layers, color=BEFORE, linewidth=1.4, label="first steps")
    axes.plot(
        np.nanmean(known[:, -some:], axis=1), layers, color=LINE, linewidth=1.8, marker="o", markersize=2.5, label="last steps"
    )
    if targets is not None:
        edges = np.arange(len(shares) + 1) - 0.5
        axes.stairs(targets, edges, baseline=None, orientation="horizontal", color=TARGET, linewidth=1.4, label="target")
    style(axes, "share by layer", grid="x")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlim(left=0)
    # Below the axes: curves of few layers leave no free corner.
    axes.legend(frameon=False, fontsize=7, labelcolor=MUTED, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
