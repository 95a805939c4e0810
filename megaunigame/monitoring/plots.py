"""Curves of a run as inline PNG pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
LINE = "#2f6f9f"
Points = tuple[Sequence[int], Sequence[float]]


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Centered moving average over `window` values (fewer at the ends), of the same length."""
    cumulative = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    count = len(values)
    left = np.maximum(np.arange(count) - (window - 1) // 2, 0)
    right = np.minimum(np.arange(count) + window // 2 + 1, count)
    return (cumulative[right] - cumulative[left]) / (right - left)


def curve_plots(series: Mapping[str, Points], exact: Collection[str] = (), columns: int = 2) -> str:
    """One small plot per series, as a `data:` URI: the raw curve faint, its moving average in front.

    Series named in `exact` have no noise and are drawn as they are.
    """
    rows = -(-len(series) // columns)
    figure = Figure(figsize=(5.2 * columns, 2.5 * rows), dpi=150, layout="constrained")
    for index, (title, points) in enumerate(series.items()):
        _draw(figure.add_subplot(rows, columns, index + 1), title, points, smoothed=title not in exact)
    return data_uri(figure)


def style(axes: Axes, title: str = "", grid: Literal["x", "y"] | None = None) -> None:
    """Title, ticks, spines and grid lines of every plot."""
    # Without mathematics between $: a name is a name.
    axes.set_title(title, loc="left", fontsize=9.5, color=INK, fontweight="bold", parse_math=False)
    axes.tick_params(labelsize=8, colors=MUTED, length=0)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _draw(axes: Axes, title: str, points: Points, smoothed: bool) -> None:
    steps, values = points
    window = max(1, len(values) // 25)
    if smoothed and window > 1:
        axes.plot(steps, values, color=LINE, alpha=0.22, linewidth=0.8)
        axes.plot(steps, smooth(values, window), color=LINE, linewidth=1.7)
    else:
        axes.plot(steps, values, color=LINE, linewidth=1.5, marker="o" if len(values) == 1 else None)
    style(axes, title, grid="y")
    axes.set_xlabel("step", fontsize=8, color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.margins(x=0.01)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def data_uri(figure: Figure) -> str:
    """A figure as a `data:image/png` URI."""
    return png_uri(png(figure))


def png_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
