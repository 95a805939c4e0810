"""The command line of `python -m data_prep`: one parser per command."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from data_prep import annotate, pack, statistics, verify
from data_prep.scenes import command as scenes

EXAMPLES = """examples (COMMAND --help shows more):
  python -m data_prep scenes --out shards/train --count 24000 --seed 1 --split train
  python -m data_prep pack --format llava-json --json F --image-root D --out data/mine
  python -m data_prep pack --format wds --source 'cc3m/*.tar' --out data/cc3m --workers 8
  python -m data_prep annotate data/mine --out data/targets --tasks depth,segmentation
  python -m data_prep verify shards/train
  python -m data_prep stats shards/train --sheet sheet.png
"""
PROGRAM = "python -m data_prep"


def parsed(typed: Sequence[str]) -> argparse.Namespace:
    """The options of one command; `run` is what to call with them, `command_line` all that was typed."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Makes, packs and checks WebDataset shards.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (scenes, pack, annotate, verify, statistics):
        command.add_parser(commands)
    arguments = parser.parse_args(typed)
    arguments.command_line = f"{PROGRAM} {shlex.join(typed)}"
    return arguments
