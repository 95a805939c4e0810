"""A folder of LoRA adapters, as PEFT writes it: by `megaunigame export --adapter`, or by somebody else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaunigame.config import LoraConfig
from megaunigame.errors import ConfigError, ModelError
from megaunigame.models.base import UnifiedModel
from megaunigame.models.weights.tensor_files import TensorFiles
from megaunigame.storage.foreign_text import quoted
from megaunigame.storage.json_files import read_object
from megaunigame.storage.pieces import Piece

ADAPTER_SETTINGS, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Of PEFT, before our names of adapters."""
LENGTHS = ".lora_magnitude_vector"
"""Ending of PEFT's names of what DoRA trains besides A and B."""
PARTS = re.compile(r".+\.(?:lora_[AB]\.weight|lora_magnitude_vector)", re.DOTALL)
"""PEFT's names of what is merged."""
WITHOUT_EFFECT = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),  # names of tensors say it
        *("lora_dropout", "eva_config", "velora_config"),  # of the training
        *("megatron_core", "qalora_group_size"),  # of settings that must be off
    }
)
"""Settings of PEFT that may have any value: V = W + scale x B A is the same."""
WANTED = {"peft_type": "LORA", "bias": "none"}
"""Settings of PEFT that say in words that something is off."""
STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""`init_lora_weights` that leave the base as it is."""
ALPHAS = 1e9
"""No alpha is larger."""


class AdapterWeights:
    """The adapters of a folder under our names (implements `Weights`)."""

    def __init__(self, folder: Path):
        """Raises ModelError for a file that is damaged, or has tensors that are not merged here."""
        file = folder / ADAPTER_WEIGHTS
        self.files = TensorFiles([file])
        if odd := sorted(key for key in self.files.index if not PARTS.fullmatch(key)):
            raise ModelError(
                f"{file} has {len(odd)} tensors besides A, B and magnitudes of LoRA, such as {quoted(odd[0], 200)}. Export the "
                "adapters without them, or merge them with PEFT (merge_and_unload) and give the whole model."
            )
        self.keys = {_our_name(key): key for key in self.files.index}

    def names(self) -> set[str]:
        return set(self.keys)

    def shape(self, name: str) -> torch.Size:
        return self.files.shape(self.keys[name])

    def read(self, name: str) -> Tensor:
        return self.files.read(self.keys[name])

    def pieces(self, name: str) -> list[Piece] | None:
        return self.files.pieces(self.keys[name])


def _our_name(key: str) -> str:
    for letter in "AB":
        key = key.replace(f".lora_{letter}.weight", f".lora_{letter}.default.weight")
    return (f"{key}.default.weight" if key.endswith(LENGTHS) else key).removeprefix(PREFIX)


def peft_name(name: str) -> str:
    """PEFT's name of a trained parameter of an adapter; inverse of what `AdapterWeights` does."""
    if name.endswith(f"{LENGTHS}.default.weight"):
        return f"{PREFIX}{name.removesuffix('.default.weight')}"
    return f"{PREFIX}{name.replace('.default.', '.')}"


def adapter_settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises ConfigError."""
    return read_object(folder / ADAPTER_SETTINGS, "the settings of adapters", ConfigError, "Export them again.")


def read_lora(folder: Path) -> LoraConfig:
    """How the adapters of a folder are merged: rank, alpha, rslora and dora; the other fields say nothing.

    Raises ConfigError for a folder without adapters, and for settings with which PEFT would compute another weight.
    """
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ConfigError(
            f"{folder} has no {ADAPTER_WEIGHTS}. Give a folder of adapters in safetensors, such as `megaunigame export RUN "
            "--adapter` writes."
        )
    file, settings = folder / ADAPTER_SETTINGS, adapter_settings(folder)
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise ConfigError(f"{file} has r={quoted(rank)}, which must be a whole number, 1 or more. Export the adapters again.")
    if type(alpha) not in (int, float) or not -ALPHAS < alpha < ALPHAS:  # type: ignore[operator]
        raise ConfigError(f"{file} has lora_alpha={quoted(alpha)}, which must be a number. Export the adapters again.")
    flags = {name: settings.get(name) for name in ("use_rslora", "use_dora")}
    for name, value in flags.items():
        if value not in (True, False, None):
            raise ConfigError(f"{file} has {name}={quoted(value)}, which must be true or false. Export the adapters again.")
    start = settings.get("init_lora_weights")
    if start is not None and start not in STARTS:
        raise ConfigError(
            f"{file} has init_lora_weights={quoted(start)}: PEFT may have changed the base of these adapters when it began. "
            "Save them for the unchanged base, with save_pretrained(..., path_initial_model_for_weight_conversion=...) of PEFT."
        )
    known = {"r", "lora_alpha", "use_rslora", "use_dora", "init_lora_weights", *WITHOUT_EFFECT}
    for name, value in settings.items():
        if name not in known and value and value != WANTED.get(name):
            how = f"with {WANTED[name]} only" if name in WANTED else "without it"
            raise ConfigError(
                f"{file} has {quoted(name)[1:-1]}={quoted(value)}; adapters are trained and merged here {how}. Train them so, "
                "or merge them with PEFT (merge_and_unload) and give the whole model."
            )
    return LoraConfig(rank=rank, alpha=float(alpha), rslora=bool(flags["use_rslora"]), dora=bool(flags["use_dora"]))  # type: ignore[arg-type]


def open_adapter(folder: str, lora: LoraConfig, family: type[UnifiedModel] = UnifiedModel) -> AdapterWeights:
    """The adapters of `model.adapter`. `family` says how targets are called.

    Raises ConfigError when they are not those that `model.lora` describes.
    """
    if not (Path(folder) / ADAPTER_SETTINGS).is_file() or not (Path(folder) / ADAPTER_WEIGHTS).is_file():
        raise ConfigError(
            f"model.adapter={folder} has no {ADAPTER_SETTINGS} or no {ADAPTER_WEIGHTS}. Give a folder that "
            "`megaunigame export RUN --adapter` wrote; weights of a run or of a model folder go into model.weights_from."
        )
    found, weights = read_lora(Path(folder)), AdapterWeights(Path(folder))
    for key in ("rank", "alpha", "rslora", "dora"):
        got, wanted = getattr(found, key), getattr(lora, key)
        if got != wanted:
            typed = str(got).lower()
            raise ConfigError(
                f"model.adapter={folder} has {key} {typed}, and model.lora.{key} is {str(wanted).lower()}. Type "
                f"model.lora.{key}={typed}."
            )
    targets = {family.target_of(name.partition(".lora_")[0]) for name in weights.names()}
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
