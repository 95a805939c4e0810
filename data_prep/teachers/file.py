"""Maps that already exist, one file per sample in a folder: from another tool or model, or measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megaunigame.data.decode import Sample
from megaunigame.errors import ConfigError
from megaunigame.pictures.pillow import opened
from megaunigame.pictures.rules import DEFAULT_RULES, PictureError

from .base import Failure, Machine, Prediction, Teacher
from .ids import ids_from_labels

GRAY = {"L", "I", "I;16", "I;16B"}
INDEXED = {"L", "P", "I", "I;16", "I;16B"}


class File(Teacher):
    """Depth: relative inverse depth (near = large), as gray PNG of 8 or 16 bits or a 2-D .npy. Segmentation: ids, 0 = none,
    as indexed or gray PNG or a 2-D .npy of integers; ids become 1..n in descending order of area."""

    tasks = ("depth", "segmentation")

    @dataclass
    class Config:
        folder: str = ""
        """Where the maps are."""
        pattern: str = "{key}.png"
        """Path of a sample's map below the folder: {key}, or any text or number at the top level of its json, as {id}."""

    def __init__(self, task: str, config: Config, machine: Machine):
        self._folder = Path(config.folder)
        if not config.folder or not self._folder.is_dir():
            raise ConfigError(
                f"{task}.folder is {config.folder!r}, not a folder; type --set {task}.folder=PATH, the folder of the maps."
            )
        self._task, self._config = task, config

    @property
    def identity(self) -> dict[str, Any]:
        return {"folder": self._folder.resolve().name, "pattern": self._config.pattern, "license": "that of the files"}

    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        return [self._map(sample) for sample in samples]

    def _map(self, sample: Sample) -> Prediction:
        known = {name: value for name, value in sample.meta.items() if isinstance(value, str | int | float)}
        try:
            relative = Path(self._config.pattern.format_map({**known, "key": sample.key}))
        except (KeyError, IndexError, ValueError) as error:
            return Failure(f"{self._task}.pattern {self._config.pattern!r} needs {error}, which the sample's json lacks")
        if relative.is_absolute() or ".." in relative.parts:
            return Failure(f"{relative} leads out of the folder of maps")
        try:
            values = read_map(self._folder / relative, GRAY if self._task == "depth" else INDEXED)
        except (OSError, ValueError, EOFError, MemoryError, PictureError) as error:  # EOFError, MemoryError: a broken .npy
            return Failure(f"no {self._task} map {relative}: {getattr(error, 'strerror', None) or error}")
        if self._task == "depth":
            return values.astype(np.float32)
        if not np.issubdtype(values.dtype, np.integer):
            return Failure(f"segmentation map {relative} holds {values.dtype} numbers; must be integer ids")
        return ids_from_labels(values)


def read_map(path: Path, modes: set[str]) -> np.ndarray:
    """(H, W) numbers as stored. Raises OSError, ValueError, EOFError, MemoryError or PictureError when there is no such
    file or it is not a map."""
    if path.suffix == ".npy":
        values = np.load(path)
    else:
        with opened(path.read_bytes(), DEFAULT_RULES) as picture:
            mode, values = picture.mode, np.array(picture)
        if mode not in modes:
            raise ValueError(f"is a picture of mode {mode}; legal: {', '.join(sorted(modes))}")
    if values.ndim != 2 or not values.size:
        raise ValueError(f"has shape {values.shape}; must be (height, width)")
    return values
