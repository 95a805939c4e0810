"""What MODEL names in a command: a model folder, a folder of adapters, a run, or one of its step folders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from megaunigame.checkpoint.base_identity import base_identity
from megaunigame.checkpoint.manifest import MANIFEST
from megaunigame.checkpoint.runs import CHECKPOINTS, open_run, step_folder_of
from megaunigame.errors import ConfigError
from megaunigame.inference.families import family_of
from megaunigame.inference.redraws import Redraw, redraws_of_folder, redraws_of_recipe
from megaunigame.models.base import UnifiedModel, Weights
from megaunigame.registry import find
from megaunigame.shipped import located

BASE_OPTION = "--base FOLDER (in Python base=FOLDER)"
"""How a user names the folder of the model that weights belong to."""


@dataclass(frozen=True)
class Source:
    """Where a model is. Nothing of its weights is read yet, nor are they checked."""

    what: str
    """For people, such as "step 60 of the run runs/tiny_sft"."""
    family: type[UnifiedModel]
    folder: Path
    """The model folder: configuration, processor, frozen tokenizer."""
    open_weights: Callable[[], Weights]
    read_identity: Callable[[], str]
    read_redraws: Callable[[], Mapping[str, Redraw]]
    check: Callable[[], None] = lambda: None
    """Compares all bytes of a checkpoint's weights with their sha256: minutes for a large one, so one process does it for all.
    Raises CheckpointError. Nothing to do for model folders, which have no sha256."""

    @cached_property
    def identity(self) -> str:
        """Tells these weights from others; the place of a folder does not count."""
        return self.read_identity()

    @cached_property
    def redraws(self) -> Mapping[str, Redraw]:
        """How it was trained to draw representations, by their name."""
        return self.read_redraws()


def find_source(place: str | Path, *, family: str = "", base: str | Path | None = None, ema: bool = False) -> Source:
    """The model that `place` names. Raises ConfigError, ModelError or CheckpointError.

    `family`: of a model folder, where its configuration does not tell. `base`: the folder of the model that adapters belong to,
    or where the `model.path` of a run lies now. `ema`: the average of the weights that a run has kept.
    """
    folder = Path(located(str(place))).expanduser()  # the tiny model is found from any folder
    given = None if base is None else Path(located(str(base))).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"No folder {folder}. Give a model folder (hf download ORG/NAME --local-dir FOLDER fetches one), a folder of "
            "adapters, or a run."
        )
    is_run = (folder / MANIFEST).is_file() or (folder / CHECKPOINTS).is_dir()
    if ema and ((folder / CONFIG_NAME).is_file() or not is_run):
        raise ConfigError(f"{folder} is not a run, and only a run keeps an average of its weights. Leave out --ema (ema=True).")
    if (folder / CONFIG_NAME).is_file():
        return _of_adapter(folder, given, family)
    if is_run:
        if family:
            raise ConfigError(f"{folder} is a run, which knows its family. Leave out --family {family}.")
        return _of_run(folder, given, ema=ema)
    if given is not None:
        raise ConfigError(f"{folder} is a whole model, which has no base. Leave out --base {given}.")
    return _of_folder(folder, family)


def _of_folder(folder: Path, family: str) -> Source:
    kind = family_of(folder, family)
    return Source(
        what=f"the model folder {folder}",
        family=kind,
        folder=folder,
        open_weights=lambda: kind.weights(str(folder)),
        read_identity=lambda: base_identity(folder),
        read_redraws=lambda: redraws_of_folder(folder),
    )


def _of_run(folder: Path, model_path: Path | None, *, ema: bool) -> Source:
    # These import the engine, which a model folder does not need and which takes seconds.
    from megaunigame.checkpoint.starting import check_weights, weights_of_run

    step_folder = folder if (folder / MANIFEST).is_file() else step_folder_of(folder)
    run = open_run(step_folder, model_path, checked=True, averaged=ema, option=BASE_OPTION)  # by `check`
    family = find("models", run.recipe.model.family, UnifiedModel)

    def identity() -> str:
        weights = base_identity(run.model_path, str(step_folder))
        return hashlib.sha256(f"{weights} average".encode()).hexdigest() if ema else weights

    def open_weights() -> Weights:
        weights = weights_of_run(family, run, checked=True)
        weights.check()
        return weights

    return Source(
        what=f"{'the average of the weights at ' if ema else ''}step {run.step} of the run {run.folder}",
        family=family,
        folder=run.model_path,
        open_weights=open_weights,
        read_identity=identity,
        read_redraws=lambda: redraws_of_folder(run.model_path) | redraws_of_recipe(run.recipe),
        check=lambda: check_weights(step_folder),
    )


def _of_adapter(folder: Path, base: Path | None, family: str) -> Source:
    from megaunigame.checkpoint.adapted import AdaptedWeights
    from megaunigame.checkpoint.adapter_folder import adapter_settings, read_lora

    lora = read_lora(folder)
    named = adapter_settings(folder).get("base_model_name_or_path")
    found = base or Path(str(named or ""))
    if not named and base is None or not found.is_dir():
        raise ConfigError(
            f"The adapters in {folder} belong to the model {named or '(not named)'}, and there is no folder {found}. Type "
            f"{BASE_OPTION} with the place where it is."
        )
    kind = family_of(found, family)

    def identity() -> str:
        adapters = hashlib.sha256((folder / SAFETENSORS_WEIGHTS_NAME).read_bytes())
        merged = f"{lora.rank} {lora.alpha} {lora.rslora} {lora.dora}"
        return hashlib.sha256(f"{base_identity(found)} {adapters.hexdigest()} {merged}".encode()).hexdigest()

    return Source(
        what=f"the adapters {folder} on {found}",
        family=kind,
        folder=found,
        open_weights=lambda: AdaptedWeights(kind.weights(str(found)), folder),
        read_identity=identity,
        read_redraws=lambda: redraws_of_folder(found) | redraws_of_folder(folder),
    )
