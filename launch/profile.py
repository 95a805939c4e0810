"""Measure what a step of a recipe costs: seconds by phase, tokens, FLOPs, memory. Needs neither data nor weights.

    python launch/profile.py launch/recipes/tiny_unigame.yaml
    python launch/profile.py launch/recipes/tiny_unigame.yaml --against sft              and the same rows without the game
    python launch/profile.py launch/recipes/tiny_unigame.yaml launch/recipes/tiny_aia.yaml
    deepspeed --num_gpus 8 launch/profile.py launch/recipes/janus_pro_7b_sft.yaml model.weights=random model.size=7b

Without a GPU, type DS_ACCELERATOR=cpu before the command. Rows are random and of the largest legal length. Several recipes run
one after the other: each is compared with its twin of --against, or with the last one; `key=value` changes all of them. Writes
profile.json and profile.html into --out, and prints the tables. How to read them: docs/profiling.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.pop(0)  # launch/, where profile.py would hide Python's module of that name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megaunigame.config import Recipe, load_recipe
from megaunigame.launching import options_of, run_to_exit
from megaunigame.objectives.building import build_objectives, build_plan
from megaunigame.parallel.ranks import start_world
from megaunigame.profiling.measure import measure
from megaunigame.profiling.page import profile_page
from megaunigame.profiling.text import as_text, warm_up_warning
from megaunigame.profiling.twin import KIND, fine_tuning_twin


def main(arguments: list[str]) -> None:
    parser = options_of(__doc__)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE|key=value", help="YAML files, and settings for all of them")
    parser.add_argument("--steps", type=int, default=5, help="measured (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="before them (default %(default)s)")
    parser.add_argument("--against", choices=[KIND], help="compare with plain fine-tuning on the same learner rows")
    parser.add_argument("--out", type=Path, help="folder (default: OUTPUT/profile of the first recipe)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    options = parser.parse_intermixed_args(arguments)  # settings may follow options
    files = [given for given in options.recipes if "=" not in given]
    if not files:
        parser.error("give a recipe, for example launch/recipes/tiny_unigame.yaml")

    recipes = [load_recipe(file, [given for given in options.recipes if "=" in given]) for file in files]
    if options.against:
        twins = [fine_tuning_twin(recipe, build_plan(build_objectives(recipe))) for recipe in recipes]
        recipes = [variant for pair in zip(recipes, twins, strict=True) for variant in pair]
    typed = [given for given in arguments if not given.startswith("--local_rank")]
    _profile(recipes, options, shlex.join(["launch/profile.py", *typed]))


def _profile(recipes: list[Recipe], options: argparse.Namespace, command: str) -> None:
    out = options.out or Path(recipes[0].output) / "profile"
    world = start_world(recipes[0].engine.timeout_minutes)
    warning = warm_up_warning(options.warmup)
    if warning and world.is_main:
        print(warning, file=sys.stderr, flush=True)
    measured = [measure(recipe, world, steps=options.steps, warmup=options.warmup, out=out) for recipe in recipes]
    if world.is_main:
        out.mkdir(parents=True, exist_ok=True)
        (out / "profile.json").write_text(json.dumps([asdict(m) for m in measured], indent=1) + "\n")
        (out / "profile.html").write_text(profile_page(measured, command), encoding="utf-8")
        print(as_text(measured))
        print(f"\nprofile: {out / 'profile.html'}")
    world.close()


if __name__ == "__main__":
    run_to_exit(main, sys.argv[1:])
