"""Recipes are measured one after the other, on every rank; rank 0 writes the results."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from megaunigame.config import Recipe
from megaunigame.parallel.ranks import start_world
from megaunigame.profiling.measure import measure
from megaunigame.profiling.page import profile_page
from megaunigame.profiling.text import as_text, warm_up_warning


def profile(recipes: Sequence[Recipe], out: Path, *, steps: int, warmup: int, command: str) -> None:
    """Write profile.json and profile.html into `out` and print the tables. `command`: what was typed, for the page."""
    world = start_world(recipes[0].engine.timeout_minutes)
    warning = warm_up_warning(warmup)
    if warning and world.is_main:
        print(warning, file=sys.stderr, flush=True)
    measured = [measure(recipe, world, steps=steps, warmup=warmup, out=out) for recipe in recipes]
    if world.is_main:
        out.mkdir(parents=True, exist_ok=True)
        (out / "profile.json").write_text(json.dumps([asdict(m) for m in measured], indent=1) + "\n")
        (out / "profile.html").write_text(profile_page(measured, command), encoding="utf-8")
        print(as_text(measured))
        print(f"\nprofile: {out / 'profile.html'}")
    world.close()
