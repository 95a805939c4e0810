"""Measurements as tables: the same rows on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence

from megaunigame.engine.memory_plan import short_bytes
from megaunigame.profiling.measure import SETTLED, Measurement
from megaunigame.profiling.twin import PREFIX
from megaunigame.step.phases import PHASES

UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
VISIBLE = 5e-5
"""Seconds below which a phase would be printed as 0."""


def heading(measured: Sequence[Measurement]) -> str:
    """Steps, warm-up, ranks and device."""
    m = measured[0]
    steps, warmup, ranks = _counted(m.steps, "step"), _counted(m.warmup, "step"), _counted(m.world_size, "rank")
    return f"{steps} after {warmup} of warm-up, {ranks}, {m.device}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def warm_up_warning(warmup: int) -> str:
    """A warning about too few steps of warm-up; empty if they are enough."""
    if warmup >= SETTLED:
        return ""
    return (
        f"{_counted(warmup, 'step')} of warm-up: too few, the measured steps are slower than later ones. Under ZeRO-3 the "
        f"order in which weights are gathered ahead is complete after {SETTLED} steps; the first steps also choose kernels and "
        f"make the moments of the optimizer. Type --warmup {SETTLED}."
    )


def recipes_of(measured: Sequence[Measurement]) -> list[Measurement]:
    """Without their twins."""
    return [m for m in measured if not m.name.startswith(PREFIX)]


def visible_phases(measured: Sequence[Measurement]) -> list[str]:
    """Phases that took time in any recipe, in the order of a step."""
    return [phase for phase in PHASES if any(m.phases[phase] >= VISIBLE for m in measured)]


def phase_rows(measured: Sequence[Measurement]) -> list[list[str]]:
    """A row per visible phase: its name, then seconds and share for each recipe."""
    rows = [[phase, *(_of_step(m, phase) for m in measured)] for phase in visible_phases(measured)]
    return [*rows, ["step, mean", *(f"{total(m):.4f}" for m in measured)]]


def _of_step(measured: Measurement, phase: str) -> str:
    seconds = measured.phases[phase]
    return f"{seconds:.4f} ({seconds / total(measured):.0%})" if seconds >= VISIBLE else "-"


def total(measured: Measurement) -> float:
    """Seconds of all phases."""
    return sum(measured.phases.values())


def fact_rows(measured: Sequence[Measurement]) -> list[list[str]]:
    """A row per number of a step: its name, then its value for each recipe."""
    facts = {
        "seconds, median": [f"{m.seconds:.4f}" for m in measured],
        "seconds, least to most": [f"{m.seconds_range[0]:.3g} to {m.seconds_range[1]:.3g}" for m in measured],
        "learner rows, all ranks": [f"{m.learner_rows:,}" for m in measured],
        "passes, one rank": [f"{m.passes:,.2f}".removesuffix(".00") for m in measured],
        "tokens, all ranks": [f"{m.tokens:,.0f}" for m in measured],
        "tokens/s": [f"{m.tokens_per_second:,.0f}" for m in measured],
        "useful tokens/s": [f"{m.useful_tokens_per_second:,.0f}" for m in measured],
        "model FLOPs, all ranks": [short(m.flops) for m in measured],
        "MFU": ["-" if m.mfu is None else f"{m.mfu:.1%}" for m in measured],
        "gathered weights, one rank": [short_bytes(m.gathered_bytes) for m in measured],
        "planned model states, one rank": [short_bytes(m.states_bytes) for m in measured],
        "peak memory, one rank": [short_bytes(m.peak_memory_bytes) for m in measured],
    }
    if any(m.planned_bytes is not None for m in measured):
        facts["planned memory, one rank"] = ["-" if m.planned_bytes is None else short_bytes(m.planned_bytes) for m in measured]
    return [[name, *values] for name, values in facts.items()]


def ratio_rows(measured: Sequence[Measurement]) -> list[list[str]]:
    """A row per cost: its name, then its value for each recipe, as a multiple of that of its twin, else of the last recipe."""
    pairs = [
        (m, next((other for other in measured[index:] if other.name.startswith(PREFIX)), measured[-1]))
        for index, m in enumerate(measured)
    ]
    costs: dict[str, list[tuple[float, float]]] = {
        "seconds, mean": [(total(m), total(unit)) for m, unit in pairs],
        "seconds, median": [(m.seconds, unit.seconds) for m, unit in pairs],
        "model FLOPs": [(m.flops, unit.flops) for m, unit in pairs],
        "gathered weights": [(m.gathered_bytes, unit.gathered_bytes) for m, unit in pairs],
        "passes": [(m.passes, unit.passes) for m, unit in pairs],
        "learner rows": [(m.learner_rows, unit.learner_rows) for m, unit in pairs],
    }
    return [[name, *(f"{cost / unit:.2f}" if unit else "-" for cost, unit in values)] for name, values in costs.items()]


def unit_name(measured: Sequence[Measurement]) -> str:
    """The unit of `ratio_rows`."""
    return "its plain fine-tuning" if recipes_of(measured) != list(measured) else measured[-1].name


def as_text(measured: Sequence[Measurement]) -> str:
    """All tables, in columns."""
    columns = [m.name for m in measured]
    parts = [
        heading(measured),
        _table("seconds of a step", columns, phase_rows(measured)),
        _table("a step", columns, fact_rows(measured)),
    ]
    if len(measured) > 1:
        parts.append(_table(f"in units of {unit_name(measured)}", columns, ratio_rows(measured)))
    return "\n\n".join(parts)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> str:
    lines = [[title, *columns], *rows]
    first = max(len(line[0]) for line in lines)
    widths = [max(len(line[i + 1]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        f"{line[0]:<{first}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(line[1:], widths, strict=True))
        for line in lines
    )


def short(value: float) -> str:
    """12.3 T for 12.3e12."""
    for unit, letter in UNITS:
        if value >= unit:
            return f"{value / unit:.3g} {letter}"
    return f"{value:.3g}"
