"""The recipes of the fault tests, on the tiny world of the multi-process tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.multi_process.tiny_run import write_data, write_model, write_pictures, write_recipe

LORA = {"train": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.2}}
GAME = {
    **{"clean_rows": 1, "hard_rows": 1, "attack_rows": 2, "pictures_every": 3},
    "adversary": {"kind": "perturber", "budget": "relative", "eps_max": 0.5, "hidden": 16},
    "clip": {"model": "tiny-random", "tau": -0.5},
    "buffer": {"merge_every": 2, "capacity": 7, "temperature": 4.0, "max_age": 6, "hardness": "gap", "draw": "keep"},
    "controller": {"flipped": 0.3},
}
BATCH = {"understanding": {"rows": 1}, "generation": {"caption_rows": 1, "pixel_rows": 1, "drop": 0.3}}
OTHERS = {"unimrg": {"rows": {"edges": 1}, "drop": 0.3}}
MEASURED = {"aia": {"preset": "auto", "targets": "relative", "calibration_steps": 5, "queries": 2}}


def write_home(home: Path) -> Path:
    """Model, shards and pictures."""
    write_model(home / "model")
    write_data(home / "shards")
    write_pictures(home / "pictures")
    return home


def everything(home: Path, steps: int = 12, **more: Any) -> dict[str, Any]:
    """Settings of a run with all methods at once: LoRA with dropout, bf16, an adversary, a hard buffer, an evaluation."""
    suites = {"questions": {"shards": str(home / "pictures"), "limit": 2, "batch": 2}}
    settings: dict[str, Any] = {
        "model": LORA,
        "objectives": {**BATCH, **OTHERS, **MEASURED, "unigame": GAME},
        "engine": {"precision": "bf16"},
        "loader": {"workers": 1},
        "schedule": {"steps": steps},
        "checkpoint": {"every": 2, "keep": 2},
        "evaluation": {"suites": suites, "every": 5},
    }
    return {**settings, **more}


def same_at_any_size(home: Path, steps: int = 12, **more: Any) -> dict[str, Any]:
    """Settings of a run whose steps do not depend on the number of ranks: fp32, no dropout, no randomness of a rank."""
    settings: dict[str, Any] = {
        "objectives": {**BATCH, **OTHERS},
        "batch": {"accumulation": None, "global_rows": 16},
        "loader": {"workers": 1},
        "schedule": {"steps": steps},
        "checkpoint": {"every": 2, "keep": 2},
    }
    return {**settings, **more}


def recipe(home: Path, name: str, settings: dict[str, Any]) -> list[str]:
    """The arguments of a launch whose run goes to `home`/runs/`name`."""
    file = write_recipe(home / f"{name}.yaml", home, **settings)
    return [str(file), f"output={run_folder(home, name)}"]


def run_folder(home: Path, name: str) -> Path:
    return home / "runs" / name
