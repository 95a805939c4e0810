"""Evaluate a model or a checkpoint with the suites of a recipe, under the engine that trained it.

    megaunigame evaluate runs/tiny_sft/recipe.yaml                          newest checkpoint of the run
    megaunigame evaluate tiny_sft checkpoint.resume=never model.path=exported/tiny_sft output=runs/exported_eval      a folder
    deepspeed --num_gpus 8 launch/evaluate.py runs/tiny_sft/recipe.yaml     the same with a launcher, from a clone

Any number of ranks, for a checkpoint as for an exported folder (`megaunigame export`). Prints the tables, and writes
<output>/evaluation/step-XXXXXXXX.json and its pictures; when <output> is the folder of a run, it is
<output>/evaluated_alone/evaluation/..., because the run decides by its own. A signal ends it at once, without results.
"""

from __future__ import annotations

import argparse

from megaunigame.launching import add_recipe
from megaunigame.parallel.local_ranks import add_ranks, start_ranks


def add_options(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_ranks(parser)


def run(options: argparse.Namespace) -> None:
    start_ranks(options.ranks, saves=False)

    from megaunigame.config import load_recipe
    from megaunigame.errors import ConfigError
    from megaunigame.training.evaluating_alone import evaluate

    recipe = load_recipe(options.recipe, options.overrides)
    if not recipe.evaluation.suites:
        raise ConfigError(f"{options.recipe} names no evaluation suite. Add one under evaluation.suites.")
    evaluate(recipe)
