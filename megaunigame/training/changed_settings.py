"""Which settings a resumed run has now, and had not when it was last launched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from megaunigame.config import Recipe, as_yaml

SHOWN, LONGEST = 6, 60
"""Changes on the console, and characters of a value."""
BLOCKS = ("data.", "weights.", "objectives.", "evaluation.suites.", "optimizer.group_lr.")
"""Mappings with keys of the user's choice: one that has come or gone is a change; elsewhere, of another version of the code."""
NONE = object()


def described_changes(step_folder: Path, recipe: Recipe) -> str:
    """`2 settings changed: optimizer.lr 0.001 -> 0.0005, ...`; empty if none did.

    Compared with recipe.yaml in the run folder of the step folder, which each launch writes.
    """
    file = step_folder.resolve().parents[1] / "recipe.yaml"
    try:
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):  # ValueError: not UTF-8
        return f"changed settings are not known: {file} cannot be read"
    changes = changed_settings(before, yaml.safe_load(as_yaml(recipe)))
    if not changes:
        return ""
    number = "1 setting" if len(changes) == 1 else f"{len(changes)} settings"
    more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
    return f"{number} changed: {', '.join(changes[:SHOWN])}{more}"


def changed_settings(before: Any, now: Any, key: str = "") -> list[str]:
    """One text for each key whose value differs: `key before -> now`. A block that has come or gone is one change."""
    if not (isinstance(before, dict) and isinstance(now, dict) and before and now):
        return [] if before == now else [f"{key} {_typed(before)} -> {_typed(now)}"]
    changes = []
    for name in dict.fromkeys([*now, *before]):
        inner = f"{key}.{name}" if key else str(name)
        if (name in before and name in now) or inner.startswith(BLOCKS):
            changes += changed_settings(before.get(name, NONE), now.get(name, NONE), inner)
    return changes


def _typed(value: Any) -> str:
    """A value as in an override, on one line."""
    if value is NONE:
        return "(none)"
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True)
    text = text.removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
