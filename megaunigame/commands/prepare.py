"""Make, pack and check data sets: pictures and texts become shards, with depth and segmentation.

    megaunigame prepare scenes --out shards/train --count 24000 --seed 1 --split train          rendered scenes
    megaunigame prepare pack --format llava-json --json F --image-root D --out shards/mine
    megaunigame prepare annotate shards/mine --out shards/targets --tasks depth,segmentation
    megaunigame prepare stats shards/mine --for tiny_sft                                        rows that a recipe finds
    megaunigame prepare verify shards/mine
    megaunigame prepare tokens shards/mine --for tiny_sft                                       exact lengths for loader.balance

Its commands are scenes, pack, annotate, verify, stats and tokens; megaunigame prepare COMMAND --help shows the options of one.
In a clone `python -m data_prep` does the same.
"""

from __future__ import annotations

import argparse
import sys

from megaunigame.shipped import data_prep


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="its command, with options")


def run(options: argparse.Namespace) -> None:
    sys.exit(data_prep("__main__").main(options.words))
