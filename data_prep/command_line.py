"""The command line of `megaunigame prepare`: one parser per command."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from importlib import import_module

EXAMPLES = """examples (COMMAND --help shows more):
  megaunigame prepare scenes --out shards/train --count 24000 --seed 1 --split train
  megaunigame prepare pack --format llava-json --json F --image-root D --out data/mine
  megaunigame prepare pack --format wds --source 'cc3m/*.tar' --out data/cc3m --workers 8
  megaunigame prepare annotate data/mine --out data/targets --tasks depth,segmentation
  megaunigame prepare tokens shards/llava --for launch/recipes/janus_pro_7b_sft.yaml model.path=models/Janus-Pro-7B
  megaunigame prepare verify shards/train
  megaunigame prepare stats shards/train --sheet sheet.png
"""
PROGRAM = "megaunigame prepare"
COMMANDS = {
    "scenes": (".scenes.command", "render small 3-D scenes with depth, segmentation, captions and questions"),
    "pack": (".pack", "pack pictures with conversations, questions or captions"),
    "annotate": (".annotate", "add depth, segmentation, picture-text similarity and codes to shards"),
    "tokens": (".count_tokens", "count the tokens of texts, so that runs deal rows by exact lengths"),
    "verify": (".verify", "check every shard of a folder"),
    "stats": (".statistics", "count samples, questions and answers; histograms; a contact sheet"),
}
"""Name -> its module, imported when it is typed (that takes seconds), and its line in --help."""


def parsed(typed: Sequence[str]) -> argparse.Namespace:
    """The options of one command; `run` is what to call with them, `command_line` all that was typed."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Makes, packs and checks WebDataset shards.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, purpose) in COMMANDS.items():
        if typed[:1] == [name]:
            import_module(module, __package__).add_parser(commands)
        else:
            commands.add_parser(name, help=purpose)
    arguments = parser.parse_args(typed)
    arguments.command_line = f"{PROGRAM} {shlex.join(typed)}"
    return arguments
