"""Measure what a step of a recipe costs: seconds by phase, tokens, FLOPs, memory. Needs neither data nor weights.

    megaunigame profile tiny_unigame
    megaunigame profile tiny_unigame --against sft                     and the same rows without the game
    megaunigame profile tiny_unigame tiny_aia
    megaunigame profile janus_pro_7b_sft model.weights=random model.size=7b --ranks 8

Without a GPU, type DS_ACCELERATOR=cpu before the command. Rows are random and of the largest legal length. Several recipes run
one after the other: each is compared with its twin of --against, or with the last one; `key=value` changes all of them. Writes
profile.json and profile.html into --out, and prints the tables. How to read them: docs/profiling.md.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from megaunigame.errors import ConfigError
from megaunigame.parallel.local_ranks import add_ranks, start_ranks


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipes", nargs="+", metavar="RECIPE|key=value", help="recipes, and settings for all of them")
    parser.add_argument("--steps", type=int, default=5, help="measured (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="before them (default %(default)s)")
    parser.add_argument("--against", choices=["sft"], help="compare with plain fine-tuning on the same learner rows")
    parser.add_argument("--out", type=Path, help="folder (default: OUTPUT/profile of the first recipe)")
    add_ranks(parser)


def run(options: argparse.Namespace) -> None:
    settings = [given for given in options.recipes if "=" in given]
    files = [given for given in options.recipes if "=" not in given]
    if not files:
        raise ConfigError("Give a recipe, for example: megaunigame profile tiny_unigame.")
    start_ranks(options.ranks, saves=False)

    from megaunigame.config import load_recipe
    from megaunigame.objectives.building import build_objectives, build_plan
    from megaunigame.profiling.running import profile
    from megaunigame.profiling.twin import fine_tuning_twin

    recipes = [load_recipe(file, settings) for file in files]
    if options.against:
        twins = [fine_tuning_twin(recipe, build_plan(build_objectives(recipe))) for recipe in recipes]
        recipes = [variant for pair in zip(recipes, twins, strict=True) for variant in pair]
    out = options.out or Path(recipes[0].output) / "profile"
    command = shlex.join(["megaunigame", "profile", *options.typed])
    profile(recipes, out, steps=options.steps, warmup=options.warmup, command=command)
