"""What four tasks cost next to two passes with the same rows: `python -m tests.benchmarks.unimrg`.

One launch of gloo ranks under ZeRO-3 steps through the cases in turn: UniMRG with n rows for each of its four tasks; one
understand pass of n rows and one generate pass of 3 n rows, from the two plain objectives; UniMRG with tasks that take turns,
of which four micro-steps make the rows of one. The shipped tiny Janus on scenes, as in tiny_unimrg.yaml.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.recording import Table, run
from tests.benchmarks.step_cases import case, cells, columns, launch, write_scenes

RECIPE = "launch/recipes/tiny_unimrg.yaml"
FOUR, PLAIN, TURNS = "four tasks", "two plain passes", "one task per micro-step"
TARGET = 1.1
"""Largest ratio of four tasks to two plain passes that the design allows."""


def settings(rows: int) -> dict[str, dict[str, Any]]:
    """Of every case."""
    tasks = {"understanding": rows, "depth": rows, "pixel": rows, "segmentation": rows}
    plain = {
        "understanding": {"rows": rows, "stream": "scenes", "independent": True},
        "generation": {"caption_rows": 0, "pixel_rows": 3 * rows, "stream": "scenes"},
    }
    return {
        FOUR: {"objectives.unimrg.rows": tasks},
        PLAIN: {"objectives": plain},
        TURNS: {"objectives.unimrg.rows": tasks, "objectives.unimrg.schedule": "round_robin", "batch.accumulation": 4},
    }


def measure(options: argparse.Namespace) -> list[Table]:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        write_scenes(home / "shards")
        steps = options.steps + options.warmup
        cases = [
            case(name, RECIPE, home / "shards", home / "runs", steps, options.warmup, own)
            for name, own in settings(options.rows).items()
        ]
        block = {"title": "UniMRG", "rounds": options.steps, "cases": cases}
        (measured,) = launch([block], options.ranks, home, hours=1)
    aims = {FOUR: TARGET}
    lines = [[name, *cells(steps, measured[PLAIN], PLAIN, aims.get(name))] for name, steps in measured.items()]
    return [Table(["case", *columns(PLAIN)], lines)]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--ranks", type=int, default=2)
    made.add_argument("--rows", type=int, default=4, help="n, rows per task, micro-step and rank (default 4)")
    made.add_argument("--steps", type=int, default=12, help="measured steps (default 12)")
    made.add_argument("--warmup", type=int, default=2, help="steps before (default 2)")
    return made


if __name__ == "__main__":
    run(parser(), measure)
