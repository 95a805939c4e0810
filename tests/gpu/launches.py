"""Tiny runs through launch/train.py on one device: trained, saved, and resumed by the same command."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from tests.multi_process.launcher import run_script
from tests.multi_process.tiny_run import write_data, write_families, write_recipe

FIRST, LAST = 2, 4
"""Steps after which the first and the second launch end."""
LORA = {"train": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}}
NO_OTHERS = {"understanding": {"rows": 0}, "generation": {"caption_rows": 0, "pixel_rows": 0}}
GAME: dict[str, Any] = {
    "clean_rows": 2,
    "hard_rows": 2,
    "attack_rows": 3,
    "adversary": {"kind": "perturber", "budget": "relative", "eps_max": 0.5, "hidden": 16},
    "clip": {"model": "tiny-random", "tau": -1.0},
    "buffer": {"merge_every": 2, "capacity": 8},
}
JUDGED = {**GAME, "clip": {"model": "tiny-random", "tau": 0.9}, "penalties": {"clip": 0.5}}
"""The adversary pays for pictures that CLIP does not take for their sources, and no such picture is replayed."""
JOINED = {"mode": "simultaneous"}
TASKS = {"rows": {"understanding": 2, "edges": 1, "pixel": 2}}
PULL = {"targets": "relative", "weights": {"generate": 5.0, "understand": 10.0}}
TIMINGS = ("time", "perf/", "data/wait_seconds")
"""Beginnings of the names of metrics that no two runs share."""
CASES: dict[str, dict[str, Any]] = {
    "sft_lora": {"model": {**LORA, "gradient_checkpointing": True}, "batch": {"accumulation": 2}},
    "sft_full_fp32": {"engine": {"precision": "fp32"}},
    "sft_zero2": {"engine": {"ds_config": "ds_configs/zero2.json"}},
    "sft_compiled": {"engine": {"ds_config": "ds_configs/zero2.json", "compile": "layers"}, "model": LORA},
    "sft_liger": {"engine": {"kernels": "liger"}, "model": {**LORA, "gradient_checkpointing": True}},
    "unigame_alternating": {"objectives": {**NO_OTHERS, "unigame": JUDGED}},
    "unigame_alternating_lora": {"objectives": {**NO_OTHERS, "unigame": GAME}, "model": LORA},
    "unigame_alternating_emu3": {
        "objectives": {**NO_OTHERS, "unigame": GAME},
        "model": {"family": "emu3", "gradient_checkpointing": True},
    },
    "unigame_simultaneous": {"objectives": {**NO_OTHERS, "unigame": {**GAME, **JOINED}}},
    "unigame_simultaneous_lora": {"objectives": {**NO_OTHERS, "unigame": {**JUDGED, **JOINED}}, "model": LORA},
    "unigame_simultaneous_emu3": {"objectives": {**NO_OTHERS, "unigame": {**GAME, **JOINED}}, "model": {"family": "emu3"}},
    "unimrg": {"objectives": {**NO_OTHERS, "unimrg": TASKS}, "model": {"family": "openuni"}},
    "unimrg_lora": {"objectives": {**NO_OTHERS, "unimrg": TASKS}, "model": LORA},
    "aia": {"objectives": {"aia": PULL}},
    "aia_lora": {"objectives": {"aia": PULL}, "model": {**LORA, "family": "emu3"}},
}


def write_world(home: Path) -> None:
    """Models of all families and shards."""
    write_families(home)
    write_data(home / "shards")


def run_whole_and_in_parts(case: str, home: Path, accelerator: str) -> list[list[dict[str, float]]]:
    """With `engine.deterministic`: what the steps of one launch report, and those of a launch that was resumed; no timings."""
    settings = {"engine": {"deterministic": True}, "schedule": {"kind": "constant"}}
    runs = [
        launch(case, home, home / "runs" / f"{case}_{len(parts)}", parts, accelerator, **settings)
        for parts in ((LAST,), (FIRST, LAST))
    ]
    return [[{name: m[name] for name in m if not name.startswith(TIMINGS)} for m in metrics] for metrics in runs]


def launch(
    case: str, home: Path, run: Path, parts: tuple[int, ...], accelerator: str, **more: dict[str, Any]
) -> list[dict[str, float]]:
    """A case in the folder `run`, launched once for each of `parts`, steps after which a launch ends; the metrics of all steps.
    `accelerator`: DS_ACCELERATOR, `cuda` or `cpu`; `more`: blocks of settings on top of the case.

    Raises AssertionError with the end of the output when a launch fails, when a loss is not finite, or when a launch does not
    go on where the one before ended.
    """
    settings: dict[str, Any] = {"loader": {"workers": 2, "prefetch": 2}, **CASES[case], **more}
    own = {**CASES[case].get("engine", {}), **more.get("engine", {})}
    settings["engine"] = {"precision": "bf16", "timeout_minutes": 2, **own}
    recipe = write_recipe(home / f"{run.name}.yaml", home, output=str(run), **settings)
    for steps in parts:
        environment = dict(os.environ, DS_ACCELERATOR=accelerator)
        launched = run_script("launch/train.py", recipe, f"schedule.steps={steps}", env=environment)
        assert launched.returncode == 0, f"{case}, to step {steps}:\n{launched.stdout[-2000:]}\n{launched.stderr[-4000:]}"
        assert (run / "checkpoints" / "latest").read_text() == f"step-{steps:08d}"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == list(range(1, parts[-1] + 1))
    assert all(math.isfinite(value) for m in metrics for name, value in m.items() if name.startswith("loss/"))
    return metrics
