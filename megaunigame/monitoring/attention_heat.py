"""How the attention of every layer moved while training: layers upwards, steps to the right, colour for the share.

Where targets were logged the colour is the distance from them: white on the target, blue below, red above. Beside it,
the curve of the first and the last steps, on the same layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter

from megaunigame.monitoring import names
from megaunigame.monitoring.attention_plots import AIM, BEFORE, TITLES, layers_of, passes_of, style
from megaunigame.monitoring.plots import GRID, LINE, MUTED, Points

COLUMNS = 200
"""At most this many columns; more steps are averaged."""
ENDS = 20
"""The curves show the mean of the first and the last twentieth of the columns."""
MISSING = "#eceff2"
LEAST_RANGE = 0.02
"""Colours span at least this share to either side, so that noise around a target stays pale."""


def per_layer(name: str) -> bool:
    """Whether a metric is part of a heat picture, rather than a curve of its own."""
    group, _, rest = name.partition("/")
    what = rest.partition("/")[2]
    return f"{group}/" == names.ATTENTION and what.startswith((names.ATTENTION_LAYER, names.ATTENTION_TARGET))


def heat_figure(series: Mapping[str, Points]) -> Figure | None:
    """A picture with one row per pass, from metrics `attention/<pass>/layer_XX`; None when there are none."""
    attended = {name.removeprefix(names.ATTENTION): points for name, points in series.items() if per_layer(name)}
    measured = dict.fromkeys(attended, 0.0)
    passes = passes_of(measured)
    if not passes:
        return None
    heights = [1.3 + 0.09 * min(len(layers_of(measured, name)), 40) for name in passes]
    figure = Figure(figsize=(10.4, sum(heights) + 0.5), dpi=150, layout="constrained")
    grid = figure.add_gridspec(len(passes), 2, width_ratios=[3, 1], height_ratios=heights)
    for row, name in enumerate(passes):
        layers = layers_of(measured, name)
        steps, shares = _matrix([attended[names.attended(name, names.ATTENTION_LAYER, layer)] for layer in layers])
        logged = [attended.get(names.attended(name, names.ATTENTION_TARGET, layer)) for layer in layers]
        targets = np.array([points[1][-1] for points in logged if points is not None])
        whole = len(targets) == len(layers)
        heat = figure.add_subplot(grid[row, 0])
        beside = figure.add_subplot(grid[row, 1], sharey=heat)
        _heat(figure, heat, steps, shares, targets[:, None] if whole else None, TITLES.get(name, name))
        _ends(beside, shares, targets if whole else None)
        _name_layers(heat, layers)
        beside.tick_params(labelleft=False)
    return figure


def _matrix(lines: list[Points]) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the columns on the axis of steps, and (layers, columns) means; NaN where nothing was logged."""
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
        axes.stairs(targets, edges, baseline=None, orientation="horizontal", color=AIM, linewidth=1.4, label="target")
    style(axes, "share by layer")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlim(left=0)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    # Below the axes: curves of a few layers leave no free corner.
    axes.legend(frameon=False, fontsize=7, labelcolor=MUTED, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)


def _name_layers(axes: Axes, layers: list[int]) -> None:
    every = -(-len(layers) // 12)
    axes.yaxis.set_major_locator(FixedLocator(list(range(0, len(layers), every))))
    axes.set_yticklabels([str(layer) for layer in layers[::every]])
