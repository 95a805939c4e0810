"""`megaunigame prepare scenes`: render a split into shards."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from megaunigame.errors import DataError

from ..options import add_part_options, part_of, require_at_least
from ..shard_writer import Job, Shard, write_dataset, write_manifest
from .samples import SMALLEST, sample
from .splits import MIXED, ORDER, QUESTIONS, SPLITS, WITH_ORDER

EXAMPLES = """examples:
  megaunigame prepare scenes --out shards/train --count 24000 --seed 1 --split train --workers 8
  megaunigame prepare scenes --out data/ood --count 1500 --seed 1 --split ood
  megaunigame prepare scenes --out data/order --count 3000 --seed 11 --split train --questions order
"""
RENDERER = 1
"""Part of the config hash: raise it when the same (seed, split, index) would give other bytes."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "scenes",
        description="Renders scenes into WebDataset shards. The same arguments give the same bytes; a run that was "
        "interrupted continues where it stopped.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--count", type=int, required=True, help="number of scenes")
    parser.add_argument("--seed", type=int, default=1, help="scene i depends on (seed, split, i) only (default 1)")
    parser.add_argument("--split", choices=SPLITS, required=True)
    parser.add_argument("--size", type=int, default=SMALLEST, help=f"pixels per side (default and least {SMALLEST})")
    parser.add_argument(
        "--questions",
        choices=QUESTIONS,
        default=MIXED,
        help="order: scenes of two objects or more, with questions such as 'what color are the objects , nearest first ?' and "
        f"no others (default {MIXED})",
    )
    parser.add_argument("--shard-size", type=int, default=1000, help="scenes per shard (default 1000)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    add_part_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the split. Raises DataError for illegal numbers."""
    require_at_least(arguments, count=1, seed=0, size=SMALLEST, shard_size=1, workers=1)
    part = part_of(arguments)
    if arguments.split == "adversarial" and (arguments.count % 2 or arguments.shard_size % 2):
        raise DataError(
            f"--count {arguments.count} --shard-size {arguments.shard_size}: adversarial scenes come in pairs that "
            "stay in one shard; both numbers must be even"
        )
    if arguments.questions == ORDER and arguments.split not in WITH_ORDER:
        raise DataError(
            f"--questions {ORDER} --split {arguments.split}: only the splits {' and '.join(WITH_ORDER)} have such scenes; "
            f"leave out --questions {ORDER}"
        )
    config = {
        "command": "scenes",
        "renderer": RENDERER,
        **{name: getattr(arguments, name) for name in ("count", "seed", "split", "size", "shard_size")},
    }
    if arguments.questions != MIXED:  # shards of mixed ones keep the hash they had before there was this option
        config["questions"] = arguments.questions
    job = Job(
        folder=arguments.out,
        name=arguments.split,
        config=config,
        shards=-(-arguments.count // arguments.shard_size),
        shard=functools.partial(scenes_of_shard, config),
        command=arguments.command_line,
    )
    statistics = write_dataset(job, arguments.workers, arguments.overwrite, part)
    if statistics is not None:
        print(write_manifest(job, statistics))


def scenes_of_shard(config: dict[str, int | str], number: int) -> Shard:
    """Shard `number` of the data set that `config` describes."""
    count, seed, size, shard_size = (int(config[name]) for name in ("count", "seed", "size", "shard_size"))
    questions = str(config.get("questions", MIXED))
    first = number * shard_size
    indices = range(first, min(first + shard_size, count))
    return Shard(samples=(sample(seed, str(config["split"]), index, size, questions) for index in indices))
