"""The folder a model is built from: that of the recipe, or one written for a published size."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from megaunigame.config import RANDOM, ModelConfig
from megaunigame.errors import ConfigError
from megaunigame.models.base import UnifiedModel
from megaunigame.registry import unknown


@contextlib.contextmanager
def model_folder(family: type[UnifiedModel], config: ModelConfig) -> Iterator[str]:
    """Path of the folder while the model is built; temporary for a size, one per process.

    Raises ConfigError for an unknown size, also where a folder is used instead, or when a folder is needed and missing.
    """
    if config.size and config.size not in family.sizes:
        raise ConfigError(_unknown_size(family, config))
    if config.weights != RANDOM or not config.size:
        _check_folder(family, config)
        yield config.path
        return
    with tempfile.TemporaryDirectory(prefix="megaunigame-") as folder:
        family.write_size(config.size, Path(folder))
        yield folder


def _unknown_size(family: type[UnifiedModel], config: ModelConfig) -> str:
    if not family.sizes:
        return f"model.size={config.size}, but model.family={config.family} has no named sizes. Type model.size=''."
    return unknown(f"value of model.size for model.family={config.family}", config.size, list(family.sizes))


def _check_folder(family: type[UnifiedModel], config: ModelConfig) -> None:
    if Path(config.path).is_dir():
        return
    if config.weights == RANDOM:
        raise ConfigError(
            f"model.weights=random needs a configuration, and there is no folder at model.path={config.path}. "
            f"Type model.size=NAME{_legal(family)}, or give a model folder; its weights are not read."
        )
    size = "" if config.size else f" model.size=NAME{_legal(family)}"
    raise ConfigError(
        f"No folder at model.path={config.path}. Give the folder of a model, or measure a shape without weights with "
        f"megaunigame profile: model.weights=random{size}."
    )


def _legal(family: type[UnifiedModel]) -> str:
    return f" ({', '.join(family.sizes)})" if family.sizes else ""
