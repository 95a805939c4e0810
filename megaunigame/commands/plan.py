"""Estimate memory and cost of a run on a cluster, from the recipe and the configuration of its model alone.

    megaunigame plan janus_pro_7b_sft --gpus-per-node 8 --gpu h100-80g
    megaunigame plan emu3_8b_aia model.size=8b --nodes 4 --json plan.json
    torchrun --nproc_per_node 2 launch/plan.py launch/recipes/tiny_sft.yaml --gpus-per-node 2 --check      from a clone

Needs no GPU, no data and no weights. Without a folder at model.path, or with model.weights=random, the shape is that of
model.size. --check builds the engine on the ranks of this launch and compares; for tiny recipes. docs/planning.md says what the
lines mean.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from megaunigame.errors import ConfigError
from megaunigame.launching import add_recipe
from megaunigame.planning.machines import add_cluster_options


def add_options(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_cluster_options(parser)
    parser.add_argument("--json", type=Path, help="also write every number into this file")
    parser.add_argument("--check", action="store_true", help="compare with the engine on the ranks of this launch")


def run(options: argparse.Namespace) -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # a plan is made on the host, with or without GPUs

    from megaunigame.config import load_recipe
    from megaunigame.planning.advice import advice
    from megaunigame.planning.check import check
    from megaunigame.planning.machines import cluster
    from megaunigame.planning.plan import make_plan
    from megaunigame.planning.progress import Progress
    from megaunigame.planning.text import describe
    from megaunigame.storage.room import make_room

    machine = cluster(options.gpu, options.nodes, options.gpus_per_node)
    recipe = load_recipe(options.recipe, options.overrides)
    main_rank = os.environ.get("RANK", "0") == "0"
    if options.json and main_rank:
        make_room("--json", options.json)
    plan = make_plan(recipe, machine, like_a_run=options.check, progress=Progress(sys.stderr if main_rank else None))
    if main_rank:
        print(describe(plan, advice(plan)), flush=True)
        if options.json:
            options.json.write_text(json.dumps(plan.to_dict(), indent=1) + "\n")
    if options.check:
        checked = check(plan, recipe, Path(recipe.output) / "plan")
        if main_rank:
            print(*checked, sep="\n", flush=True)
        if wrong := [str(c) for c in checked if c.wrong]:
            raise ConfigError(f"The plan is not what the engine does: {'; '.join(wrong)}.")
