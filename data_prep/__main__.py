"""`python -m data_prep COMMAND`: makes, packs and checks data sets."""

from __future__ import annotations

import argparse
import shlex
import sys

from data_prep import annotate, pack, statistics, verify
from data_prep.scenes import command as scenes
from megaunigame.errors import UserError

EXAMPLES = """examples (COMMAND --help shows more):
  python -m data_prep scenes --out shards/train --count 24000 --seed 1 --split train
  python -m data_prep pack --format llava-json --json F --image-root D --out data/mine
  python -m data_prep pack --format wds --source 'cc3m/*.tar' --out data/cc3m --workers 8
  python -m data_prep annotate data/mine --out data/targets --tasks depth,segmentation
  python -m data_prep verify shards/train
  python -m data_prep stats shards/train --sheet sheet.png
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 (verify found a fault) or 2 (an error the user can fix)."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description="Makes, packs and checks WebDataset shards.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (scenes, pack, annotate, verify, statistics):
        command.add_parser(commands)
    typed = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(typed)
    arguments.command_line = shlex.join([*"python -m data_prep".split(), *typed])
    try:
        return arguments.run(arguments) or 0
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
