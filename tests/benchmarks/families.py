"""Seconds of a step of the tiny recipes on every family of size `tiny`: `python -m tests.benchmarks.families`.

One process of `megaunigame profile` for each family and recipe, with random weights and without data. Columns compare families;
rows compare recipes, which have different numbers of rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from megaunigame.models.base import UnifiedModel
from megaunigame.registry import available
from tests.benchmarks.recording import REPOSITORY, Cell, Table, run, spread

GAME = "tiny_unigame"
RECIPES = ("tiny_sft", "tiny_unimrg", GAME, "tiny_aia", "tiny_combined")
EVERY_LINEAR = "model.lora.targets=[q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]"
"""Adapters on the set of weights of BAGEL that reads, too: in the game they are trained through it."""


def settings(family: str, recipe: str) -> list[str]:
    """Of a profile, besides its shape."""
    if recipe == "tiny_combined":
        return ["objectives.unigame.redraw=own"]  # what every family takes
    return [EVERY_LINEAR] if (family, recipe) == ("bagel", GAME) else []


def profiled(family: str, recipe: str, options: argparse.Namespace) -> dict[str, Any]:
    """A profile of a recipe, as `megaunigame profile` writes it."""
    shape = [f"model.family={family}", "model.weights=random", "model.size=tiny", "model.path=absent"]
    with tempfile.TemporaryDirectory() as out:
        counted = ["--warmup", str(options.warmup), "--steps", str(options.steps), "--out", out]
        command = [sys.executable, "-m", "megaunigame", "profile", recipe, *shape, *settings(family, recipe), *counted]
        subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
        return json.loads((Path(out) / "profile.json").read_text())[0]


def measure(options: argparse.Namespace) -> list[Table]:
    lines: list[list[Cell]] = []
    families = sorted(available("models", UnifiedModel))
    for number, family in enumerate(families):
        print(f"{family}, {number + 1} of {len(families)}", flush=True)
        profiles = [profiled(family, recipe, options) for recipe in RECIPES]
        times = [spread((*found["seconds_range"], found["seconds"])) for found in profiles]
        lines.append([family, *times, ", ".join(f"{found['passes']:g}" for found in profiles)])
    return [Table(["family", *(f"`{recipe}`" for recipe in RECIPES), "passes of these"], lines)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--steps", type=int, default=4, help="measured steps of each (default 4)")
    made.add_argument("--warmup", type=int, default=2, help="steps before (default 2)")
    return made


if __name__ == "__main__":
    run(parser(), measure)
