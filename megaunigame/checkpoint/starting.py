"""The weights a run begins with, other than those of its model folder: of another run, or of an export."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from megaunigame.checkpoint.adapter_folder import ADAPTER_SETTINGS
from megaunigame.checkpoint.agreement import on_main
from megaunigame.checkpoint.contents import check_everywhere, check_here
from megaunigame.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from megaunigame.checkpoint.runs import CHECKPOINTS, SavedRun, open_run, read_train_state, start_of, step_folder_of
from megaunigame.checkpoint.saved_learner import is_of_weights
from megaunigame.checkpoint.trained import MergedWeights
from megaunigame.checkpoint.unreadable import reading
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel, Weights
from megaunigame.models.weights.loading import check_names, check_shapes
from megaunigame.parallel.ranks import Ranks
from megaunigame.storage.pieces import Piece


def find_start(weights_from: str) -> str:
    """What `model.weights_from` names: the absolute path of a step folder or of a model folder; empty for none.

    Of a run, the newest checkpoint. Raises ConfigError for anything else.
    """
    if not weights_from:
        return ""
    folder = Path(weights_from).resolve()
    if (folder / ADAPTER_SETTINGS).is_file():
        raise ConfigError(f"model.weights_from={weights_from} is a folder of adapters. Type model.adapter={weights_from}.")
    if (folder / MANIFEST).is_file() or (folder / "config.json").is_file():
        return str(folder)
    if (folder / CHECKPOINTS).is_dir():
        return str(step_folder_of(folder))
    raise ConfigError(
        f"model.weights_from={weights_from} is neither the folder of a run (with {CHECKPOINTS}/), nor one of its step folders, "
        "nor a model folder (with config.json). Give one of them."
    )


def start_weights(family: type[UnifiedModel], path: str, start: str, *, checked: bool = False) -> Weights:
    """The weights a run begins with: those of `path`, or of `start` if that is not empty, for the same model.

    `checked`: as in `open_run`. Raises ModelError naming what is missing, unexpected or of another shape, ConfigError for a run
    of another family, CheckpointError for a damaged step folder.
    """
    if not start:
        return family.weights(path)
    if (Path(start) / MANIFEST).is_file():
        return weights_of_run(family, open_run(Path(start), checked=checked), checked=checked)
    if not Path(start).is_dir():
        raise ConfigError(f"model.weights_from: this run began with the weights of {start}, which is not there any more.")
    return family.weights(start)


def weights_of_run(family: type[UnifiedModel], run: SavedRun, *, checked: bool = False) -> MergedWeights:
    """Every weight of the model a run has trained, on top of those it began with itself."""
    config = run.recipe.model
    if config.family != family.name:
        raise ConfigError(f"The run {run.folder} trained model.family={config.family}; this one is of {family.name}.")
    base = start_weights(family, str(run.model_path), run.start, checked=checked)
    return MergedWeights(base, run.step_folder, config.lora, averaged=run.averaged)


def checked_start(family: type[UnifiedModel], path: str, start: str, world: Ranks) -> Weights:
    """Collective: `start_weights` for the model of `path`; rank 0 checks that they fit it, for all.

    Weights of a run are read from the slices of its ranks, one tensor at a time.
    """
    for folder, manifest in on_main(world, lambda: step_folders_of(start)):
        check_everywhere(folder, manifest, world)
    opened = OpenedOnUse(lambda: start_weights(family, path, start, checked=True))
    on_main(world, lambda: _check_fit(family, path, start, opened.weights))
    return opened


def check_weights(step_folder: Path) -> None:
    """In one process: compare the files that the weights of a step folder are read from with their sha256, also those of the
    run that it began with. Raises CheckpointError."""
    for folder, manifest in step_folders_of(str(step_folder)):
        files = {name: file for name, file in manifest.files.items() if is_of_weights(name)}
        check_here(folder, dataclasses.replace(manifest, files=files))


def step_folders_of(start: str) -> list[tuple[Path, Manifest]]:
    """The step folders that weights of `start` come from: that run may have begun with those of another, and so on."""
    found: list[tuple[Path, Manifest]] = []
    while start and (Path(start) / MANIFEST).is_file():
        folder = Path(start)
        with reading(folder):
            found.append((folder, read_manifest(folder)))
        start = start_of(folder, read_train_state(folder))
    return found


class OpenedOnUse:
    """Weights that are opened when the first of them is asked for (implements `Weights`).

    Where weights are partitioned, only rank 0 asks: no other rank opens files to see what is in them.
    """

    def __init__(self, open_weights: Callable[[], Weights]):
        self._open = open_weights

    @cached_property
    def weights(self) -> Weights:
        return self._open()

    def names(self) -> set[str]:
        return self.weights.names()

    def shape(self, name: str) -> torch.Size:
        return self.weights.shape(name)

    def read(self, name: str) -> Tensor:
        return self.weights.read(name)

    def pieces(self, name: str) -> Sequence[Piece] | None:
        return self.weights.pieces(name)


def _check_fit(family: type[UnifiedModel], path: str, start: str, weights: Weights) -> None:
    if not start:
        return  # those of `path` are compared when they are opened
    if isinstance(weights, MergedWeights):
        weights.check()
    wanted = family.weights(path)
    check_names(wanted.names(), weights.names(), f"model.weights_from ({start})")
    shapes = {name: wanted.shape(name) for name in wanted.names()}
    found = {name: weights.shape(name) for name in shapes}
    check_shapes(shapes, found, f"model.weights_from ({start}), for the model in {path},")
