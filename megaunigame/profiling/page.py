"""The page of a profile: one file, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

from megaunigame.monitoring import page
from megaunigame.monitoring.plots import GRID, INK, MUTED, data_uri
from megaunigame.phases import PHASES
from megaunigame.profiling.measure import Measured
from megaunigame.profiling.text import fact_rows, phase_rows, ratio_rows, short, short_bytes, total

COLORS = ("#9aa5b1", "#b3362b", "#2f6f9f", "#5fa3c7", "#e0a33c", "#8a5a9e", "#1b7f4b", "#c26a8f", "#d8dde3")
"""Of the phases, in their order."""
NARROW = 0.06
"""Share of the longest bar below which a phase is not labelled."""


def profile_page(measured: Sequence[Measured], command: str) -> str:
    """The whole document: numbers, bars, tables."""
    head, columns = measured[0], ["", *(m.name for m in measured)]
    numeric = [False, *(True for _ in measured)]

    def table(rows: list[list[str]], last: str = "") -> str:
        return page.table(columns, [[escape(cell) for cell in row] for row in rows], numeric, last)

    plural = "s" if head.world_size != 1 else ""
    body = [
        f"<h1>Profile of {escape(head.name)}</h1>",
        f'<p class="muted">{head.steps} steps after {head.warmup} of warm-up · {head.world_size} rank{plural} · '
        f"{escape(head.device)} · rows of the largest legal length, random pictures and words</p>",
        f'<code class="command">{escape(command)}</code>',
        page.tiles(_tiles(head)),
        "<h2>Seconds of a step</h2>",
        f'<img class="plot" alt="seconds by phase" src="{data_uri(bars(measured))}">',
        table(phase_rows(measured), "step, mean"),
        "<h2>A step in numbers</h2>",
        table(fact_rows(measured)),
    ]
    if len(measured) > 1:
        body += [f"<h2>In units of {escape(measured[-1].name)}</h2>", table(ratio_rows(measured))]
    return page.page(f"Profile of {head.name}", "\n".join(body))


def _tiles(measured: Measured) -> list[tuple[str, str]]:
    tiles = [
        ("seconds a step, median", f"{measured.seconds:.3g}"),
        ("tokens/s", f"{measured.tokens_per_second:,.0f}"),
        ("useful tokens", f"{measured.useful_tokens_per_second / measured.tokens_per_second:.0%}"),
        ("model FLOPs a step", short(measured.flops)),
        ("peak memory of a rank", short_bytes(measured.peak_memory_bytes)),
    ]
    return tiles if measured.mfu is None else [*tiles, ("MFU", f"{measured.mfu:.1%}")]


def bars(measured: Sequence[Measured]) -> Figure:
    """One bar for each recipe, its phases in a row."""
    figure = Figure(figsize=(10.4, 1.5 + 0.55 * len(measured)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    longest = max(total(m) for m in measured)
    for color, phase in zip(COLORS, PHASES, strict=True):
        widths = [m.phases[phase] for m in measured]
        if not any(widths):
            continue
        lefts = [sum(m.phases[earlier] for earlier in PHASES[: PHASES.index(phase)]) for m in measured]
        drawn = axes.barh(range(len(measured)), widths, left=lefts, color=color, height=0.6, label=phase)
        shown = [f"{width:.2g}" if width > NARROW * longest else "" for width in widths]
        axes.bar_label(drawn, shown, label_type="center", fontsize=8, color="white")
    axes.set_yticks(range(len(measured)), [m.name for m in measured], fontsize=9, color=INK)
    axes.invert_yaxis()
    axes.set_xlabel("seconds", fontsize=8, color=MUTED)
    axes.tick_params(labelsize=8, colors=MUTED, length=0)
    axes.tick_params(axis="y", labelsize=9, labelcolor=INK)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    figure.legend(loc="outside upper left", ncols=len(PHASES), fontsize=8, frameon=False, handlelength=1.0, columnspacing=1.2)
    return figure
