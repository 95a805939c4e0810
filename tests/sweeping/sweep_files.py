"""A recipe and sweep files that the tests of the sweep share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.multi_process.tiny_run import write_recipe


def write_sweep(folder: Path, **settings: Any) -> str:
    """A sweep of two arms and two seeds in `folder`; `settings` replace top-level keys, None leaves one out."""
    sweep = {
        "name": "fruit",
        "output": str(folder / "out"),
        "recipe": str(write_recipe(folder / "recipe.yaml", folder)),
        "seeds": [0, 1],
        "common": {"schedule.steps": 4},
        "arms": {"plain": {}, "fast": {"optimizer.lr": 5.0e-2}},
        "baseline": "plain",
        "metrics": {"right": "evaluation/q/accuracy/mean", "loss": "loss/total"},
    }
    sweep = {key: value for key, value in {**sweep, **settings}.items() if value is not None}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return str(path)
