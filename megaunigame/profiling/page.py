"""The page of a profile: one file, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from megaunigame.engine.memory_plan import short_bytes
from megaunigame.monitoring import page
from megaunigame.monitoring.plots import INK, MUTED, data_uri, style
from megaunigame.profiling.measure import Measurement
from megaunigame.profiling.text import (
    fact_rows,
    heading,
    phase_rows,
    ratio_rows,
    recipes_of,
    short,
    total,
    unit_name,
    visible_phases,
    warm_up_warning,
)
from megaunigame.step.phases import PHASES

COLORS = ("#9aa5b1", "#b3362b", "#2f6f9f", "#5fa3c7", "#e0a33c", "#8a5a9e", "#1b7f4b", "#c26a8f", "#d8dde3")
"""Of the phases, in their order."""
OPTION = re.compile(r"(?<!\S)--\w[\w-]*( \d+)?")
NARROW = 0.06
"""Share of the longest bar below which a phase is not labeled."""


def profile_page(measured: Sequence[Measurement], command: str) -> str:
    """The whole document: numbers, bars, tables."""
    columns = ["", *(m.name for m in measured)]
    numeric = [False, *(True for _ in measured)]
    recipes = recipes_of(measured)
    title = f"Profile of {', '.join(m.name for m in recipes)}"
    warning = warm_up_warning(measured[0].warmup)

    def table(rows: list[list[str]], last: str = "") -> str:
        return page.table(columns, [[escape(cell) for cell in row] for row in rows], numeric, last)

    head = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="muted">{escape(heading(measured))}. Rows of the largest legal length, random pictures and words.</p>',
        f'<p class="bad">{_unbroken(warning)}</p>' if warning else "",
        f'<code class="command">{_unbroken(command)}</code>',
        page.tiles(_tiles(measured)) if len(recipes) == 1 else "",
    ]
    by_phase = page.plot(data_uri(bars(measured)), "seconds by phase") + table(phase_rows(measured), "step, mean")
    sections = [page.Section("Seconds of a step", by_phase), page.Section("A step in numbers", table(fact_rows(measured)))]
    if len(measured) > 1:
        sections.append(page.Section(f"In units of {unit_name(measured)}", table(ratio_rows(measured))))
    return page.page(title, "\n".join(head), sections)


def _unbroken(text: str) -> str:
    """HTML without line breaks inside an option."""
    return OPTION.sub(r'<span style="white-space: nowrap">\g<0></span>', escape(text))


def _tiles(measured: Sequence[Measurement]) -> list[tuple[str, str]]:
    """Of one recipe (the first) and its twin, if any."""
    head, *twin = measured
    tiles = [
        ("seconds a step, median", f"{head.seconds:.3g}"),
        ("tokens/s", f"{head.tokens_per_second:,.0f}"),
        ("useful tokens", f"{head.useful_tokens_per_second / head.tokens_per_second:.0%}"),
        ("model FLOPs a step", short(head.flops)),
        ("peak memory of a rank", short_bytes(head.peak_memory_bytes)),
    ]
    if head.mfu is not None:
        tiles.append(("MFU", f"{head.mfu:.1%}"))
    return [*tiles, *(("times as long as plain fine-tuning", f"{total(head) / total(other):.2f}") for other in twin)]


def _is_light(color: str) -> bool:
    """Whether dark letters are easier to read on `color` than white ones."""
    red, green, blue = to_rgb(color)
    return 0.3 * red + 0.6 * green + 0.1 * blue > 0.5


def bars(measured: Sequence[Measurement]) -> Figure:
    """One bar for each recipe, its phases in a row."""
    figure = Figure(figsize=(10.4, 1.5 + 0.55 * len(measured)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    longest = max(total(m) for m in measured)
    shown_phases = visible_phases(measured)
    for phase in shown_phases:
        color, widths = COLORS[PHASES.index(phase)], [m.phases[phase] for m in measured]
        lefts = [sum(m.phases[earlier] for earlier in PHASES[: PHASES.index(phase)]) for m in measured]
        drawn = axes.barh(range(len(measured)), widths, left=lefts, color=color, height=0.6, label=phase)
        shown = [f"{width:.2g}" if width > NARROW * longest else "" for width in widths]
        axes.bar_label(drawn, shown, label_type="center", fontsize=8, color=INK if _is_light(color) else "white")
    axes.set_yticks(range(len(measured)), [m.name for m in measured], fontsize=9, color=INK)
    axes.invert_yaxis()
    axes.set_xlabel("seconds", fontsize=8, color=MUTED)
    style(axes, grid="x")
    axes.tick_params(axis="y", labelsize=9, labelcolor=INK)
    figure.legend(
        loc="outside upper left", ncols=len(shown_phases), fontsize=8, frameon=False, handlelength=1.0, columnspacing=1.2
    )
    return figure
