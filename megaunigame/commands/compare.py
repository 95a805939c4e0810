"""Compare runs: which settings differ, and the last value of every loss and evaluation.

    megaunigame compare runs/a runs/b
    megaunigame compare runs/* --metrics 'loss/*' 'held_out/*'
    megaunigame compare runs/a runs/b --json compared.json

For arms times seeds with spreads: megaunigame sweep.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--metrics", nargs="+", default=[], metavar="NAME", help="metrics to show; * stands for any text")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers into this file")


def run(options: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    from megaunigame.monitoring.compared_runs import as_text, compare
    from megaunigame.monitoring.history import read_run_folder
    from megaunigame.storage.room import make_room

    if options.json:
        make_room("--json", options.json)
    comparison = compare([read_run_folder(folder) for folder in options.runs], options.metrics)
    print(as_text(comparison))
    if options.json:
        options.json.write_text(json.dumps(asdict(comparison), indent=1) + "\n", encoding="utf-8")
