"""The weights a run begins with, other than those of its model folder: of another run, of an export, of an adapter."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from megaunigame.checkpoint.agreement import on_main
from megaunigame.checkpoint.contents import check_everywhere
from megaunigame.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from megaunigame.checkpoint.runs import CHECKPOINTS, SavedRun, open_run, read_train_state, start_of, step_folder_of
from megaunigame.checkpoint.trained import MergedWeights
from megaunigame.checkpoint.unreadable import reading
from megaunigame.config import LoraConfig
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel, Weights
from megaunigame.models.weights.loading import check_names, check_shapes
from megaunigame.models.weights.tensor_files import TensorFiles
from megaunigame.parallel.ranks import Ranks
from megaunigame.storage.foreign_text import quoted
from megaunigame.storage.json_files import read_object

ADAPTER_SETTINGS, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Of PEFT, before our names of adapters."""
PLAIN = {"use_dora": False, "use_rslora": False, "bias": "none", "modules_to_save": None, "rank_pattern": {}}
"""Settings of PEFT that only have these values here."""


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
    return MergedWeights(base, run.step_folder, config.lora)


def checked_start(family: type[UnifiedModel], path: str, start: str, world: Ranks) -> Weights:
    """Collective: `start_weights` for the model of `path`; rank 0 checks that they fit it, for all.

    Weights of a run are read from the slices of its ranks, one tensor at a time.
    """
    for folder, manifest in on_main(world, lambda: step_folders_of(start)):
        check_everywhere(folder, manifest, world)
    weights = start_weights(family, path, start, checked=True)
    if start:
        on_main(world, lambda: _check_fit(family, path, start, weights))
    return weights


def step_folders_of(start: str) -> list[tuple[Path, Manifest]]:
    """The step folders that weights of `start` come from: that run may have begun with those of another, and so on."""
    found: list[tuple[Path, Manifest]] = []
    while start and (Path(start) / MANIFEST).is_file():
        folder = Path(start)
        with reading(folder):
            found.append((folder, read_manifest(folder)))
        start = start_of(folder, read_train_state(folder))
    return found


def _check_fit(family: type[UnifiedModel], path: str, start: str, weights: Weights) -> None:
    if isinstance(weights, MergedWeights):
        weights.check()
    wanted = family.weights(path)
    check_names(wanted.names(), weights.names(), f"model.weights_from ({start})")
    shapes = {name: wanted.shape(name) for name in wanted.names()}
    found = {name: weights.shape(name) for name in shapes}
    check_shapes(shapes, found, f"model.weights_from ({start}), for the model in {path},")


class AdapterWeights:
    """The adapters of an exported folder under our names (implements `Weights`)."""

    def __init__(self, folder: Path):
        self.files = TensorFiles([folder / ADAPTER_WEIGHTS])
        self.keys = {_our_name(key): key for key in self.files.index}

    def names(self) -> set[str]:
        return set(self.keys)

    def shape(self, name: str) -> torch.Size:
        return self.files.shape(self.keys[name])

    def read(self, name: str) -> Tensor:
        return self.files.read(self.keys[name])


def _our_name(key: str) -> str:
    for letter in "AB":
        key = key.replace(f".lora_{letter}.weight", f".lora_{letter}.default.weight")
    return key.removeprefix(PREFIX)


def open_adapter(folder: str, lora: LoraConfig) -> AdapterWeights:
    """The adapters of `model.adapter`. Raises ConfigError when they are not those that `model.lora` describes."""
    settings_file = Path(folder) / ADAPTER_SETTINGS
    if not settings_file.is_file() or not (Path(folder) / ADAPTER_WEIGHTS).is_file():
        raise ConfigError(
            f"model.adapter={folder} has no {ADAPTER_SETTINGS} or no {ADAPTER_WEIGHTS}. Give a folder that "
            "`launch/export.py RUN --adapter` wrote; weights of a run or of a model folder go into model.weights_from."
        )
    settings = read_object(settings_file, "the settings of adapters", ConfigError, "Export them again.")
    for name in ("r", "lora_alpha"):
        if type(settings.get(name)) not in (int, float):
            raise ConfigError(
                f"{settings_file} has {name}={quoted(settings.get(name))}, which must be a number. Export the adapters again."
            )
    for name, value in PLAIN.items():
        if settings.get(name, value) not in (value, None):
            raise ConfigError(
                f"{settings_file} has {name}={quoted(settings[name])}; adapters are trained here with {name}={value} only."
            )
    weights = AdapterWeights(Path(folder))
    for key, got, wanted in (("rank", settings["r"], lora.rank), ("alpha", settings["lora_alpha"], lora.alpha)):
        if got != wanted:
            raise ConfigError(
                f"model.adapter={folder} has {key} {got}, and model.lora.{key} is {wanted}. Type model.lora.{key}={got}."
            )
    targets = {name.split(".lora_")[0].rpartition(".")[2] for name in weights.names()}
    odd = next((name for name in sorted(targets) if not re.fullmatch("[A-Za-z0-9_]+", name)), None)
    if odd is not None:  # names stand in a command to copy
        raise ConfigError(
            f"model.adapter={folder} has adapters on {quoted(odd)}, which is not a layer of a model. Do not use it."
        )
    if lora.targets and targets != set(lora.targets):
        raise ConfigError(
            f"model.adapter={folder} has adapters on {', '.join(sorted(targets))}, and model.lora.targets are "
            f"{', '.join(lora.targets)}. Type 'model.lora.targets=[{','.join(sorted(targets))}]'."
        )
    return weights
