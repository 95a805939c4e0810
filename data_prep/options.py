"""Command line options of all commands that write shards."""

from __future__ import annotations

import argparse

from megaunigame.errors import DataError
from megaunigame.pictures.rules import GROUNDS, MAX_PIXELS, WHITE, PictureRules, ground_from


def add_part_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rank", type=int, default=0, help="this process writes shards RANK, RANK+WORLD, ... (default 0)")
    parser.add_argument("--world", type=int, default=1, help="processes, of a job array for example (default 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace shards written with other settings")


def add_failure_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retry-failed", action="store_true", help="write the shards again in which something failed")
    parser.add_argument(
        "--max-failed-fraction",
        type=float,
        default=0.01,
        metavar="X",
        help="largest fraction of the entries that may fail (default 0.01)",
    )


def add_picture_options(parser: argparse.ArgumentParser, *, ground: bool = True) -> None:
    if ground:
        parser.add_argument(
            "--ground",
            default=WHITE,
            metavar="COLOR",
            help=f"what transparent pictures lie on: {', '.join(GROUNDS)} or '#rrggbb' (default {WHITE})",
        )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help=f"a picture with more pixels is a failure, and is not decoded (default {MAX_PIXELS:,})",
    )


def picture_rules(arguments: argparse.Namespace) -> PictureRules:
    """The rules of the command line. Raises ConfigError or DataError for an option that is not legal."""
    require_at_least(arguments, max_pixels=1)
    ground = ground_from("--ground", arguments.ground) if "ground" in arguments else GROUNDS[WHITE]
    return PictureRules(ground, arguments.max_pixels)


def require_at_least(arguments: argparse.Namespace, **least: int) -> None:
    """Raises DataError naming the first option that is below its least legal value."""
    for name, smallest in least.items():
        if getattr(arguments, name) < smallest:
            raise DataError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be at least {smallest}")


def part_of(arguments: argparse.Namespace) -> tuple[int, int]:
    """(rank, world). Raises DataError unless 0 <= rank < world."""
    if not 0 <= arguments.rank < arguments.world:
        raise DataError(
            f"--rank {arguments.rank} --world {arguments.world}: ranks count from 0 to world - 1; "
            "in a SLURM array type --rank $SLURM_ARRAY_TASK_ID --world $SLURM_ARRAY_TASK_COUNT"
        )
    return arguments.rank, arguments.world
