"""A finished or stopped run on disk: its recipe, one of its checkpoints, and the model it began with."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaunigame.checkpoint import step_folders
from megaunigame.checkpoint.base_identity import base_identity
from megaunigame.checkpoint.contents import check_here
from megaunigame.checkpoint.manifest import MANIFEST, REMEDY, TRAIN_STATE, read_manifest
from megaunigame.checkpoint.saved_learner import SavedLearner
from megaunigame.checkpoint.unreadable import reading
from megaunigame.config import RANDOM, LoraConfig, Recipe, load_recipe
from megaunigame.errors import CheckpointError, ConfigError
from megaunigame.storage.json_files import read_object
from megaunigame.storage.retries import retried

CHECKPOINTS = "checkpoints"
MODEL_OPTION = "--model FOLDER"
"""Of the commands that take a run: the folder that its `model.path` names, where that was moved."""


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint of a run with what its weights depend on."""

    folder: Path
    recipe: Recipe
    """That of the newest launch, with the `model.lora` of the launch that saved the step."""
    step_folder: Path
    model_path: Path
    """The folder of `model.path`, absolute."""
    start: str
    """`start_of` its state: where its first weights are, if not in `model_path`."""
    averaged: bool = False
    """Whether its weights are the average that `ema.decay` keeps."""

    @property
    def step(self) -> int:
        return read_manifest(self.step_folder).step


def step_folder_of(folder: Path, step: int | str | None = None) -> Path:
    """The checkpoint `step` of a run, its best one (`best`), or its newest. Raises ConfigError when it has none."""
    if step == step_folders.BEST:
        with reading(folder / CHECKPOINTS):
            name = step_folders.named(folder / CHECKPOINTS, step_folders.BEST)
        if not name:
            raise ConfigError(
                f"{folder} has no best checkpoint: {CHECKPOINTS}/{step_folders.BEST} names none. It is written in runs with "
                "checkpoint.best.metric; give the number of a step instead."
            )
        return folder / CHECKPOINTS / name
    if isinstance(step, str):
        if not step.isdecimal():
            raise ConfigError(f"{step!r} is not a step. Give its number, or {step_folders.BEST}.")
        step = int(step)
    if step is not None:
        return folder / CHECKPOINTS / step_folders.step_name(step)
    with reading(folder / CHECKPOINTS):
        found = step_folders.newest(folder / CHECKPOINTS)
    if found is None:
        raise ConfigError(f"{folder} has no checkpoint yet. Give the folder of a run that has saved one.")
    return found[0]


def open_run(
    step_folder: Path,
    model_path: Path | None = None,
    *,
    checked: bool = False,
    averaged: bool = False,
    option: str = MODEL_OPTION,
) -> SavedRun:
    """The run of a step folder. `model_path`: where the folder of its `model.path` lies now, if it was moved; `option`: what a
    user types to say so.

    `averaged`: with the average of its weights in their place. Raises ConfigError when none was kept.
    Every file is read and compared with its sha256, unless all ranks together have `checked` them. Raises CheckpointError when
    the step folder is damaged, ConfigError when the model folder is not found, or has other weights than the run began with.
    """
    if not checked:
        with reading(step_folder):
            check_here(step_folder, read_manifest(step_folder))
    if averaged and not SavedLearner(step_folder).averaged:
        raise ConfigError(
            f"{step_folder} has no average of the weights: its run had ema.decay=0. Leave out --ema, to take the weights."
        )
    folder = step_folder.resolve().parents[1]
    recipe = load_recipe(str(folder / "recipe.yaml"), [])
    if recipe.model.weights == RANDOM:
        raise ConfigError(f"{folder} began with random weights (model.weights=random), to measure a shape: it has no model.")
    found = model_folder_of(folder, recipe, model_path, option)
    state = read_train_state(step_folder)
    start = start_of(step_folder, state)
    _check_base(step_folder, state.get("base", ""), found, start, option)
    if state.get("lora"):  # each launch writes recipe.yaml; the adapters of this step were trained with these
        lora = LoraConfig(**state["lora"])
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, lora=lora))
    return SavedRun(folder, recipe, step_folder, found, start, averaged)


def start_of(step_folder: Path, state: dict[str, Any]) -> str:
    """The step folder or model folder of the weights that a run began with; empty: those of its `model.path`.

    `state`: of the step folder. What the run has kept of another run comes before the place where that was.
    """
    if state.get("kept_start"):
        kept = step_folder.resolve().parents[1] / state["kept_start"]
        if (kept / MANIFEST).is_file():
            return str(kept)
    return state.get("start", "")


def _check_base(step_folder: Path, trained_on: str, model_path: Path, start: str, option: str) -> None:
    """Raise ConfigError when these are other weights than those the run began with. `trained_on` empty: not known."""
    if trained_on and trained_on != base_identity(model_path, start):
        places = (str(model_path), start)
        raise ConfigError(
            f"{step_folder} was trained on other weights than those that are now in {' and '.join(filter(None, places))}: "
            f"names and shapes may be the same, the content is not. Type {option} with the folder that it began with."
        )


def model_folder_of(folder: Path, recipe: Recipe, moved_to: Path | None = None, option: str = MODEL_OPTION) -> Path:
    """The absolute folder of `model.path` of a run; `moved_to`: where it lies now. Raises ConfigError when it is not there."""
    found = Path(os.path.abspath(_model_folder(folder, recipe.model.path, option) if moved_to is None else moved_to))
    if not found.is_dir():
        raise ConfigError(
            f"The run {folder} began with the model folder model.path={recipe.model.path}, and there is no folder {found}. "
            f"Type {option} with the place where it is now."
        )
    return found


def read_train_state(step_folder: Path) -> dict[str, Any]:
    """`TrainState` as JSON. Raises CheckpointError."""
    path, what = step_folder / TRAIN_STATE, "the state of a run"
    with reading(step_folder):
        return retried(lambda: read_object(path, what, CheckpointError, REMEDY, disk_errors=True))


def record_of(folder: Path, option: str = MODEL_OPTION) -> dict[str, Any]:
    """run.json; empty for a run that has none. Raises ConfigError."""
    file = folder / "run.json"
    if not file.is_file():
        return {}
    return read_object(file, "the record of a run", ConfigError, f"Type {option} with the folder of its model.")


def _model_folder(folder: Path, path: str, option: str) -> Path:
    """A relative path is meant from where the training was started."""
    return Path(record_of(folder, option).get("directory", Path.cwd())) / path
