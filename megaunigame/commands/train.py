"""Train a model from a recipe; the same command again goes on from the newest checkpoint.

    megaunigame train tiny_sft                                         a recipe by its name, one rank for each GPU here
    megaunigame train my.yaml output=runs/a schedule.steps=2000        a file, with settings changed
    DS_ACCELERATOR=cpu megaunigame train tiny_sft --ranks 2            two processes on the CPU

On many nodes, from a clone (Slurm, Kubernetes: docs/clusters.md):

    deepspeed --hostfile hosts launch/train.py launch/recipes/tiny_sft.yaml output=runs/a

Without DS_ACCELERATOR=cpu a run needs GPUs. On Ctrl-C it saves and stops.
"""

from __future__ import annotations

import argparse

from megaunigame.launching import add_recipe
from megaunigame.parallel.interruption import Interruption
from megaunigame.parallel.local_ranks import add_ranks, start_ranks
from megaunigame.shipped import data_prep

STOP = Interruption()


def add_options(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_ranks(parser)


def run(options: argparse.Namespace) -> None:
    start_ranks(options.ranks, saves=True)
    STOP.listen()  # before the imports that take seconds
    train_here(options)


def train_here(options: argparse.Namespace) -> None:
    """As one rank, in this process."""
    from megaunigame.config import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)  # wrong settings are refused before the imports that take seconds
    from megaunigame.monitoring.trackers.together import check_trackers
    from megaunigame.training.running import train

    check_trackers(recipe.monitor.trackers)  # here too: packing may take hours
    sources = data_prep("first_use").pack_sources(recipe.data)
    train(recipe, STOP, sources=sources, command=["megaunigame", "train", options.recipe, *options.overrides])
