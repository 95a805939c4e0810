"""The sweep as one picture: a small plot per metric, one point per run, the mean over seeds in front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from megaunigame.monitoring.plots import INK, LINE, MUTED, png, style
from megaunigame.storage.whole_files import write_whole
from megaunigame.sweeping.definition import Sweep
from megaunigame.sweeping.table import Result, heading, scale, spread, values_of

PLOT_FILE = "plot.png"
BASELINE = "#b3362b"
COLUMNS = 4


def write_plot(sweep: Sweep, results: Sequence[Result]) -> Path:
    """Write plot.png into the sweep's folder and return its path. Arms without a finished run stay empty."""
    columns = min(COLUMNS, len(sweep.metrics))
    rows = -(-len(sweep.metrics) // columns)
    by_arm = not sweep.x.values
    height = 1.0 + 0.32 * len(sweep.arms) if by_arm else 2.9
    margin = 0.09 * max(map(len, sweep.arms)) if by_arm else 0.0  # names of the arms next to the first column
    figure = Figure(figsize=(3.3 * columns + margin, height * rows + 0.5), dpi=150, layout="constrained")
    total = len(sweep.arms) * len(sweep.seeds)
    partial = "" if len(results) == total else f" (partial: {len(results)} of {total} runs)"
    figure.suptitle(f"{sweep.name}{partial}", fontsize=11, color=INK, fontweight="bold", x=0.01, ha="left")
    for index, (title, metric) in enumerate(sweep.metrics.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        values = {arm: [scale(metric) * v for v in values_of(results, arm, metric).values()] for arm in sweep.arms}
        if by_arm:
            _arms(axes, sweep, values, named=index % columns == 0)
        else:
            _axis(axes, sweep, values)
        style(axes, heading(title, metric), grid="x" if by_arm else "y")
    path = Path(sweep.output) / PLOT_FILE
    write_whole(path, png(figure))
    return path


def _axis(axes: Axes, sweep: Sweep, values: dict[str, list[float]]) -> None:
    """A line of means over x; a baseline without x is a dashed horizontal line."""
    places = sorted(sweep.x.values.items(), key=lambda item: item[1])
    for arm, x in places:
        axes.plot([x] * len(values[arm]), values[arm], "o", color=LINE, alpha=0.35, markersize=4, markeredgewidth=0)
    means = [(x, found.mean) for arm, x in places if (found := spread(values[arm]))]
    axes.plot([x for x, _ in means], [y for _, y in means], color=LINE, linewidth=1.7, marker="o", markersize=5)
    base = spread(values[sweep.baseline]) if sweep.baseline and sweep.baseline not in sweep.x.values else None
    if base is not None:
        axes.axhline(base.mean, color=BASELINE, linewidth=1.2, linestyle="--")
        if base.deviation:
            axes.axhspan(base.mean - base.deviation, base.mean + base.deviation, color=BASELINE, alpha=0.08, linewidth=0)
        axes.annotate(
            sweep.baseline, (1.0, base.mean), xycoords=("axes fraction", "data"), xytext=(0, 2), textcoords="offset points",
            ha="right", va="bottom", fontsize=7.5, color=BASELINE,
        )  # fmt: skip
    if sweep.x.log:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([x for _, x in places]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{x:g}" for _, x in places])
    axes.set_xlabel(sweep.x.title, fontsize=8, color=MUTED)


def _arms(axes: Axes, sweep: Sweep, values: dict[str, list[float]], named: bool) -> None:
    """One line per arm from top to bottom, in the order of the sweep file."""
    for line, arm in enumerate(sweep.arms):
        color = BASELINE if arm == sweep.baseline else LINE
        axes.plot(values[arm], [line] * len(values[arm]), "o", color=color, alpha=0.35, markersize=4.5, markeredgewidth=0)
        found = spread(values[arm])
        if found is not None:
            axes.plot([found.mean], [line], "|", color=color, markersize=15, markeredgewidth=2)
            if arm == sweep.baseline:
                axes.axvline(found.mean, color=color, linewidth=0.8, linestyle="--", alpha=0.6)
    axes.set_ylim(len(sweep.arms) - 0.5, -0.5)
    axes.set_yticks(range(len(sweep.arms)), list(sweep.arms) if named else [""] * len(sweep.arms))
