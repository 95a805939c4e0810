"""What `unigame.py` and `unimrg.py` share: cases of a launch, the launch itself, and a table of what the steps measured."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

from data_prep.__main__ import main as data_prep
from megaunigame.monitoring import names
from tests.benchmarks.recording import Cell, at_most, spread
from tests.benchmarks.step_ranks import CPU_SECONDS, FLOPS
from tests.multi_process.launcher import run_ranks

Steps = dict[str, dict[str, float]]
"""Round -> what the step of one case measured in it."""


def write_scenes(folder: Path, *more: str) -> None:
    if data_prep(["scenes", "--out", str(folder), "--count", "64", "--seed", "1", "--split", "train", *more]):
        raise SystemExit(1)


def case(
    name: str, recipe: str, shards: Path, output: Path, steps: int, warmup: int, settings: dict[str, Any], every: int = 1
) -> dict[str, Any]:
    """One way to train, as the rank program reads it. `settings`: dotted keys of the recipe; `every`: rounds per step."""
    whole = {
        "data.scenes.shards": str(shards),
        "loader.workers": 0,
        "schedule": {"steps": steps, "kind": "constant"},
        "evaluation.suites": {},
        "output": str(output / name),
        **settings,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in whole.items()]
    return {"name": name, "recipe": recipe, "every": every, "warmup": warmup, "overrides": overrides}


def launch(blocks: list[dict[str, Any]], ranks: int, home: Path, hours: float) -> list[dict[str, Steps]]:
    """Of every block, the measured steps by the name of the case. Over gloo, with or without a GPU."""
    (home / "blocks.json").write_text(json.dumps(blocks))
    print(f"every step is noted in {home / 'progress.log'}", flush=True)
    os.environ.update(DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")  # inherited by the ranks
    run_ranks("tests.benchmarks.step_ranks", ranks, home, timeout=3600 * hours)
    return json.loads((home / "measured.json").read_text())


def middle(steps: Steps, key: str) -> float:
    return statistics.median(step[key] for step in steps.values())


def mean(steps: Steps, key: str) -> float:
    """For counts: how much the engine prefetches can differ from step to step."""
    return statistics.mean(step[key] for step in steps.values())


def ratio(ours: Steps, base: Steps) -> dict[str, float]:
    """Of the median step times; the least and the largest within one round."""
    rounds = (ours[n][names.PERF_STEP_SECONDS] / base[n][names.PERF_STEP_SECONDS] for n in ours.keys() & base.keys())
    of_medians = middle(ours, names.PERF_STEP_SECONDS) / middle(base, names.PERF_STEP_SECONDS)
    return spread(rounds) | {"median": of_medians}


def cpu_ratio(ours: Steps, base: Steps) -> float:
    return middle(ours, CPU_SECONDS) / middle(base, CPU_SECONDS)


def flops_ratio(ours: Steps, base: Steps) -> float:
    """0 where the operations of a case were not counted, because it is not warmed up."""
    return middle(ours, FLOPS) / middle(base, FLOPS)


def columns(base: str) -> list[str]:
    return ["s / step", f"/ {base}", "aim", "CPU s / step", f"CPU / {base}", "passes", "MiB gathered"]


def cells(steps: Steps, base: Steps, base_name: str, most: float | None) -> list[Cell]:
    """Of one case, under `columns(base_name)`. `most`: the largest ratio that the design allows."""
    return [
        *(middle(steps, names.PERF_STEP_SECONDS), ratio(steps, base)),
        at_most(most, f"/ {base_name}") if most else None,
        *(middle(steps, CPU_SECONDS), cpu_ratio(steps, base)),
        *(round(mean(steps, names.PERF_PASSES)), mean(steps, names.PERF_ALLGATHER_BYTES) / 2**20),
    ]
