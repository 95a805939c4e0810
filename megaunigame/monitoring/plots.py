"""The look of all plots, and figures as inline PNG pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
LINE = "#2f6f9f"
Points = tuple[Sequence[int], Sequence[float]]


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


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def data_uri(figure: Figure) -> str:
    """A figure as a `data:image/png` URI."""
    return png_uri(png(figure))


def png_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
