"""What four tasks cost next to two passes with the same rows: `python tests/benchmarks/unimrg.py`.

One launch of gloo ranks under ZeRO-3 steps through the cases in turn: UniMRG with n rows for each of its four tasks; one
understand pass of n rows and one generate pass of 3 n rows, from the two plain objectives; UniMRG with tasks that take turns,
of which four micro-steps make the rows of one. The shipped tiny Janus on scenes, as in tiny_unimrg.yaml.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
# Inherited by the ranks. deepspeed reads it when it is imported: what is compared runs over gloo, with or without a GPU.
os.environ.update(DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

from data_prep.__main__ import main as data_prep
from megaunigame.monitoring import names
from tests.benchmarks.step_ranks import CPU_SECONDS
from tests.multi_process.launcher import run_ranks

RECIPE = "launch/recipes/tiny_unimrg.yaml"
FOUR, PLAIN, TURNS = "four tasks", "two plain passes", "one task per micro-step"
TARGET = 1.1
"""Largest ratio of four tasks to two plain passes that the design allows."""


def cases(home: Path, rows: int, steps: int, warmup: int) -> list[dict[str, Any]]:
    tasks = {"understanding": rows, "depth": rows, "pixel": rows, "segmentation": rows}
    plain = {
        "understanding": {"rows": rows, "stream": "scenes", "independent": True},
        "generation": {"caption_rows": 0, "pixel_rows": 3 * rows, "stream": "scenes"},
    }
    own: dict[str, dict[str, Any]] = {
        FOUR: {"objectives.unimrg.rows": tasks},
        PLAIN: {"objectives": plain},
        TURNS: {"objectives.unimrg.rows": tasks, "objectives.unimrg.schedule": "round_robin", "batch.accumulation": 4},
    }
    common = {
        "data.scenes.shards": str(home / "shards"),
        "loader.workers": 0,
        "schedule": {"steps": steps + warmup, "kind": "constant"},
        "evaluation.suites": {},
    }
    return [
        {
            "name": name,
            "recipe": RECIPE,
            "every": 1,
            "warmup": warmup,
            "overrides": [
                f"{key}={json.dumps(value)}"
                for key, value in {**common, "output": str(home / "runs" / name), **settings}.items()
            ],
        }
        for name, settings in own.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4, help="n, rows per task, micro-step and rank (default 4)")
    parser.add_argument("--steps", type=int, default=12, help="measured steps (default 12)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before (default 2)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        if data_prep(["scenes", "--out", str(home / "shards"), "--count", "64", "--seed", "1", "--split", "train"]):
            raise SystemExit(1)
        described = cases(home, options.rows, options.steps, options.warmup)
        block = {"title": "UniMRG", "rounds": options.steps, "cases": described}
        (home / "blocks.json").write_text(json.dumps([block]))
        run_ranks("tests.benchmarks.step_ranks", options.ranks, home, timeout=3600)
        (measured,) = json.loads((home / "measured.json").read_text())
    print(f"{options.ranks} ranks, ZeRO-3, gloo, {os.cpu_count()} cores, {options.rows} rows per task\n")
    print("| case | s / step | / two plain passes | in single rounds | target | CPU s / step | passes | MiB gathered |")
    print("|---|---|---|---|---|---|---|---|")
    base = measured[PLAIN]
    for case, steps in measured.items():
        seconds, cpu, passes, gathered = (
            statistics.median(step[key] for step in steps.values())
            for key in (names.PERF_STEP_SECONDS, CPU_SECONDS, names.PERF_PASSES, names.PERF_ALLGATHER_BYTES)
        )
        rounds = [steps[n][names.PERF_STEP_SECONDS] / base[n][names.PERF_STEP_SECONDS] for n in steps]
        middle = seconds / statistics.median(step[names.PERF_STEP_SECONDS] for step in base.values())
        print(
            f"| {case} | {seconds:.3f} | {middle:.2f} | {min(rounds):.2f} .. {max(rounds):.2f} | "
            f"{f'<= {TARGET}' if case == FOUR else ''} | {cpu:.3f} | {passes:.0f} | {gathered / 2**20:.1f} |"
        )


if __name__ == "__main__":
    main()
