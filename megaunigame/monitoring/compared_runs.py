"""Several runs side by side: how they differ in settings, and what each reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import yaml

from megaunigame.errors import DataError
from megaunigame.monitoring.history import RunFolder

SELDOM_COMPARED = ("perf/*", "rows/*", "adversary/*", "buffer/*")
"""Series that a comparison shows only if they are asked for."""
NOT_SETTINGS = ("name", "output")


@dataclass(frozen=True)
class Comparison:
    names: list[str]
    """Of the runs; columns."""
    settings: dict[str, list[str]]
    """Setting -> its value in every run, for those that differ."""
    reached: dict[str, list[float | None]]
    """Metric -> its last value in every run; None: that run does not have it."""


def compare(runs: Sequence[RunFolder], patterns: Sequence[str] = ()) -> Comparison:
    """`patterns`: metrics to show, with `*`; none: losses and evaluations.

    Raises DataError for a run without metrics, and when no metric has a name that was asked for.
    """
    for run in runs:
        if not run.series:
            raise DataError(f"{run.path} has no metrics yet. Give runs that have made a step.")
    metrics = sorted({name for run in runs for name in run.series if _shown(name, patterns)})
    if not metrics:
        known = sorted({name for run in runs for name in run.series})
        raise DataError(f"No metric matches {', '.join(patterns)}. Known: {', '.join(known)}.")
    recipes = [dict(_flat(yaml.safe_load(run.recipe) or {}, "")) for run in runs]
    keys = sorted({key for recipe in recipes for key in recipe if key not in NOT_SETTINGS})
    settings = {key: [str(recipe.get(key, "-")) for recipe in recipes] for key in keys}
    return Comparison(
        names=[str(run.path) for run in runs],
        settings={key: values for key, values in settings.items() if len(set(values)) > 1},
        reached={name: [run.series[name][1][-1] if name in run.series else None for run in runs] for name in metrics},
    )


def as_text(comparison: Comparison) -> str:
    """Two tables in Markdown."""
    names = comparison.names
    settings = _table(["setting", *names], [[key, *values] for key, values in comparison.settings.items()])
    numbers = [[name, *map(_number, values)] for name, values in comparison.reached.items()]
    same = ["The settings of the runs are the same."] if len(names) > 1 else []
    parts = [settings] if comparison.settings else same
    return "\n\n".join([*parts, _table(["last value of", *names], numbers)])


def _shown(name: str, patterns: Sequence[str]) -> bool:
    if patterns:
        return any(fnmatch(name, pattern) for pattern in patterns)
    return not any(fnmatch(name, pattern) for pattern in SELDOM_COMPARED)


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
