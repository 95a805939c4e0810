"""Whether a run fits and why: what it would take otherwise, or what to change; single changes, or several together."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from itertools import combinations

from megaunigame.planning.changes import Change, Parts, changes_of, parts
from megaunigame.planning.plan import LIVE, Plan
from megaunigame.planning.units import gib

MOST_TOGETHER = 4


def advice(plan: Plan) -> list[str]:
    """Lines. Fits: what it would take without the two things that save most. Does not: single changes that make it fit, else
    the first combinations that do: what to type, cost, estimate."""
    memory = plan.cluster.gpu.memory
    if plan.fits:
        return [f"fits: {gib(plan.total)} of {gib(memory)}{_otherwise(plan)}"]
    verdict = f"does not fit: {gib(plan.total)} of {gib(memory)}"
    changes, now = list(changes_of(plan)), parts(plan)
    for count in range(1, MOST_TOGETHER + 1):
        found = [together for together in _together(changes, count, plan) if _total(together, now) <= memory]
        if found:
            would = "One of these changes would do" if count == 1 else "No change alone would do; together"
            return [f"{verdict}. {would}, by estimate:", *_lines(found, now)]
    return [f"{verdict}. Type a smaller model.max_length, or plan for a GPU with more memory."]


def _otherwise(plan: Plan) -> str:
    """What would be needed without gradient checkpointing, and on one GPU, by estimate; empty if neither saves anything."""
    otherwise = []
    if plan.checkpointing:
        live = max(plan.plain.peak, plan.plain.aside_peak) + plan.step.gathered_at_once
        otherwise.append(f"{gib(plan.total - plan.memory[LIVE] + live)} without gradient checkpointing")
    if plan.cluster.ranks > 1:
        now = parts(plan)
        shared = now.gradients + now.optimizer + (now.weights if plan.stage == 3 else 0)
        otherwise.append(f"{gib(plan.total + (plan.cluster.ranks - 1) * shared)} with weights and states whole")
    return f"; by estimate {', '.join(otherwise)}" if otherwise else ""


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
