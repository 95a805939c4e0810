"""A finished or stopped run on disk: its recipe, one of its checkpoints, and the model it began with."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaunigame.checkpoint.manager import LATEST, TRAIN_STATE, read_manifest
from megaunigame.config import RANDOM, Recipe, load_recipe
from megaunigame.errors import ConfigError

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint of a run with what its weights depend on."""

    folder: Path
    recipe: Recipe
    step_folder: Path
    model_path: Path
    """The folder of `model.path`, absolute."""
    start: str
    """`TrainState.start`: where its first weights come from, if not from `model_path`."""

    @property
    def step(self) -> int:
        return read_manifest(self.step_folder).step


def step_folder_of(folder: Path, step: int | None = None) -> Path:
    """The checkpoint `step` of a run, or its newest. Raises ConfigError when it has none."""
    pointer = folder / CHECKPOINTS / LATEST
    if step is None and not pointer.is_file():
        raise ConfigError(f"{folder} has no checkpoint yet. Give the folder of a run that has saved one.")
    return folder / CHECKPOINTS / (pointer.read_text().strip() if step is None else f"step-{step:08d}")


def open_run(step_folder: Path, model_path: Path | None = None) -> SavedRun:
    """The run of a step folder. `model_path`: where the folder of its `model.path` lies now, if it was moved.

    Raises CheckpointError when the step folder is damaged, ConfigError when the model folder is not found.
    """
    read_manifest(step_folder)
    folder = step_folder.resolve().parents[1]
    recipe = load_recipe(str(folder / "recipe.yaml"), [])
    if recipe.model.weights == RANDOM:
        raise ConfigError(f"{folder} began with random weights (model.weights=random), to measure a shape: it has no model.")
    train_state = json.loads((step_folder / TRAIN_STATE).read_text())
    found = model_folder_of(folder, recipe, model_path)
    return SavedRun(folder, recipe, step_folder, found, train_state.get("start", ""))


def model_folder_of(folder: Path, recipe: Recipe, moved_to: Path | None = None) -> Path:
    """The absolute folder of `model.path` of a run; `moved_to`: where it lies now. Raises ConfigError when it is not there."""
    found = Path(os.path.abspath(_model_folder(folder, recipe.model.path) if moved_to is None else moved_to))
    if not found.is_dir():
        raise ConfigError(
            f"The run {folder} began with the model folder model.path={recipe.model.path}, and there is no folder {found}. "
            "Type --model FOLDER with the place where it is now."
        )
    return found


def record_of(folder: Path) -> dict[str, Any]:
    """run.json; empty for a run that has none."""
    file = folder / "run.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _model_folder(folder: Path, path: str) -> Path:
    """A relative path is meant from where the training was started."""
    return Path(record_of(folder).get("directory", Path.cwd())) / path
