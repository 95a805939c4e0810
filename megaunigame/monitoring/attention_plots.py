"""Curves of attention by layer: before and after a training, and against the targets. Made from metrics alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from megaunigame.monitoring import names
from megaunigame.monitoring.plots import GRID, INK, LINE, MUTED

BEFORE, AIM = "#9aa5b1", "#b3362b"
TITLES = {"generate": "generate: from the drawn picture to the text", "understand": "understand: from answers to the picture"}


@dataclass(frozen=True)
class LayerCurve:
    """Shares of attention in [0, 1] of the measured layers; all (L,)."""

    layers: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    first: np.ndarray
    target: np.ndarray | None


def layers_of(metrics: Mapping[str, float], pass_name: str) -> list[int]:
    """Layers that `<pass>/layer_XX` metrics exist of, ascending."""
    found = (re.fullmatch(rf"{re.escape(pass_name)}/{names.ATTENTION_LAYER}(\d+)", name) for name in metrics)
    return sorted(int(match[1]) for match in found if match)


def passes_of(metrics: Mapping[str, float]) -> list[str]:
    """Passes with metrics of layers, in the order of their names."""
    found = (re.fullmatch(rf"(\w+)/{names.ATTENTION_LAYER}\d+", name) for name in metrics)
    return sorted({match[1] for match in found if match})


def read_curves(metrics: Mapping[str, float]) -> dict[str, LayerCurve]:
    """Pass -> its curve, from the metrics of an attention suite; empty for those of another suite."""
    curves = {}
    for name in passes_of(metrics):
        layers = layers_of(metrics, name)

        def line(what: str, name: str = name, layers: list[int] = layers) -> np.ndarray:
            return np.array([metrics[names.attended(name, what, layer)] for layer in layers])

        aimed = names.attended(name, names.ATTENTION_TARGET, layers[0]) in metrics
        curves[name] = LayerCurve(
            layers=np.array(layers),
            mean=line(names.ATTENTION_LAYER),
            spread=line(names.ATTENTION_SPREAD),
            first=line(names.ATTENTION_FIRST_LAYER),
            target=line(names.ATTENTION_TARGET) if aimed else None,
        )
    return curves


def curves_figure(after: Mapping[str, LayerCurve], before: Mapping[str, LayerCurve] | None = None) -> Figure:
    """One panel per pass: mean and spread over samples by layer, targets as steps, the share of the first token faint."""
    figure = Figure(figsize=(5.2 * len(after), 3.3), dpi=150, layout="constrained")
    for index, (name, curve) in enumerate(after.items()):
        axes = figure.add_subplot(1, len(after), index + 1)
        if before and name in before:
            _draw(axes, before[name], BEFORE, "before")
        _draw(axes, curve, LINE, "after" if before else "mean ± spread over samples")
        axes.plot(curve.layers, curve.first, color=LINE, linewidth=1.1, linestyle=":", alpha=0.6, label="to the first token")
        if curve.target is not None:
            edges = np.append(curve.layers - 0.5, curve.layers[-1] + 0.5)
            axes.stairs(curve.target, edges, baseline=None, color=AIM, linewidth=1.4, label="target")
        style(axes, TITLES.get(name, name))
        axes.set_xlabel("layer", fontsize=8, color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _draw(axes: Axes, curve: LayerCurve, color: str, label: str) -> None:
    low, high = np.clip(curve.mean - curve.spread, 0, 1), np.clip(curve.mean + curve.spread, 0, 1)
    axes.fill_between(curve.layers, low, high, color=color, alpha=0.18, linewidth=0)
    axes.plot(curve.layers, curve.mean, color=color, linewidth=1.8, marker="o", markersize=3, label=label)


def style(axes: Axes, title: str) -> None:
    """As the other plots of the report."""
    axes.set_title(title, loc="left", fontsize=9.5, color=INK, fontweight="bold")
    axes.tick_params(labelsize=8, colors=MUTED, length=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def write_curves(path: Path, metrics: Mapping[str, float]) -> None:
    """Write the curves of one measurement as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        FigureCanvasAgg(curves_figure(read_curves(metrics))).print_png(file)
