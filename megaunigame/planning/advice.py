"""What to change so that a run fits: single changes, or several together if no single one is enough."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from itertools import combinations

from megaunigame.planning.changes import Change, Parts, changes_of, parts
from megaunigame.planning.plan import Plan
from megaunigame.planning.units import gib

MOST_TOGETHER = 4


def advice(plan: Plan) -> list[str]:
    """Lines: single changes that make it fit, else the first combinations that do: what to type, cost, estimate."""
    if plan.fits:
        return ["fits"]
    memory = plan.cluster.gpu.memory
    verdict = f"does not fit: {gib(plan.total)} of {gib(memory)}"
    changes, now = list(changes_of(plan)), parts(plan)
    for count in range(1, MOST_TOGETHER + 1):
        found = [together for together in _together(changes, count, plan) if _total(together, now) <= memory]
        if found:
            would = "One of these changes would do" if count == 1 else "No change alone would do; together"
            return [f"{verdict}. {would}, by estimate:", *_lines(found, now)]
    return [f"{verdict}. Type a smaller model.max_length, or plan for a GPU with more memory."]


def _together(changes: list[Change], count: int, plan: Plan) -> Iterator[tuple[Change, ...]]:
    """Combinations of `count` changes; several always begin with gradient checkpointing if it is off."""
    for together in combinations(changes, count):
        if len({change.exclusive for change in together}) == count and (
            count == 1 or plan.checkpointing or together[0] == changes[0]
        ):
            yield together


def _total(changes: tuple[Change, ...], now: Parts) -> int:
    return reduce(lambda given, change: change.apply(given), changes, now).total


def _lines(found: list[tuple[Change, ...]], now: Parts) -> list[str]:
    """One line each; the first of those that differ in numbers only."""
    lines: dict[tuple[str, ...], str] = {}
    for changes in found:
        typed, costs = " and ".join(change.typed for change in changes), "; ".join(change.cost for change in changes)
        lines.setdefault(tuple(change.kind for change in changes), f"  {typed}: {costs}; {gib(_total(changes, now))}")
    return list(lines.values())
