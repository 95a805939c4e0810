"""Codes of pictures by the frozen tokenizer of a family: what training would compute in every pass, computed once.

Only the tokenizer is loaded; the language model stays without weights. It computes in float32 without TF32 on every machine, as
in training: in lower precision many codes would be others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaunigame.data.decode import Sample
from megaunigame.errors import ConfigError, DataError, ModelError
from megaunigame.models.base import UnifiedModel
from megaunigame.registry import available, find, unknown
from megaunigame.step.codes import PictureCodes
from megaunigame.step.requests import CROP, FIT, GEOMETRIES

from .base import Failure, Machine, Prediction, Teacher


class Tokenizer(Teacher):
    tasks = ("codes",)

    @dataclass
    class Config:
        model: str = ""
        """Folder of the model that will be trained; of its weights, only the tokenizer's are read."""
        family: str = ""
        """Module in megaunigame/models; empty: the one family with codes whose configuration the folder has."""
        geometries: str = f"{FIT}+{CROP}"
        """How pictures become squares, joined by `+`: those of the recipe's rows. By default questions see the whole picture
        (fit), and a picture is drawn, and shown to be drawn, from its middle (crop)."""

    def __init__(self, task: str, config: Config, machine: Machine):
        if not config.model:
            raise ConfigError("--tasks codes needs the folder of the model that will be trained: --model models/Emu3-Gen-hf.")
        self.name = config.family or _family_of(config.model)
        family = find("models", self.name, UnifiedModel)
        if not family.has_codes:
            raise ConfigError(
                f"--family {self.name}: its pictures are not codes. Families with codes: {', '.join(_with_codes())}."
            )
        self.folder, self.machine = config.model, machine
        self.model = _with_tokenizer(family, config.model, machine.device)
        self.processor: Any = self.model.processor
        self.squares = _squares(config.geometries, family, self.processor)
        self.codebook, self.hash = len(self.model.codebook()), self.model.tokenizer_identity()

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "family": self.name,
            "model": Path(self.folder).name,
            "tokenizer_sha256": self.hash,
            "squares": [f"{geometry}.{side}" for geometry, side in self.squares],
        }

    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Codes of all pictures of each sample; a Failure where one of them cannot be decoded."""
        shown = [_images(sample) for sample in samples]
        flat = [picture for images in shown if not isinstance(images, Failure) for picture in images]
        grids = {square: self._encoded(flat, *square) for square in self.squares} if flat else {}
        predictions: list[Prediction] = []
        first = 0
        for images in shown:
            if isinstance(images, Failure):
                predictions.append(images)
                continue
            own = slice(first, first + len(images))
            predictions.append(PictureCodes(self.hash, self.codebook, {square: grid[own] for square, grid in grids.items()}))
            first = own.stop
        return predictions

    def _encoded(self, pictures: Sequence[Tensor], geometry: str, side: int) -> Tensor:
        """(n, h, w) codes."""
        codes = []
        for first in range(0, len(pictures), self.machine.batch):
            part = pictures[first : first + self.machine.batch]
            pixels = torch.stack([self.processor.target_pixels(picture, geometry, side) for picture in part])
            codes.append(self.model.encode_target(pixels.to(self.machine.device)).cpu())
        flat = torch.cat(codes)
        return flat.unflatten(1, (isqrt(flat.shape[1]), -1))


def _images(sample: Sample) -> list[Tensor] | Failure:
    try:
        return sample.images
    except DataError as error:
        return Failure(str(error))


def _with_codes() -> list[str]:
    return [name for name in available("models", UnifiedModel) if find("models", name, UnifiedModel).has_codes]


def _family_of(folder: str) -> str:
    """The family with codes whose configuration the folder has. Raises ConfigError unless there is exactly one."""
    if not Path(folder).is_dir():
        raise ConfigError(f"--model {folder}: no such folder. Give the folder of the model that will be trained.")
    able, refusals = [], []
    for name in _with_codes():
        try:
            layers = find("models", name, UnifiedModel).language_layers(folder)  # refuses the configuration of others
        except ModelError as error:
            refusals.append(f"{name}: {error}")
            continue
        if layers:
            able.append(name)
        else:
            refusals.append(f"{name}: does not read configurations; type --family {name}")
    if not able:
        reasons = "".join(f"\n  {refusal}" for refusal in refusals)
        raise ConfigError(f"--model {folder}: no family with codes can read its configuration:{reasons}")
    if len(able) > 1:
        raise ConfigError(f"--model {folder}: {' and '.join(able)} can read it. Name the family: --family {able[0]}.")
    return able[0]


def _with_tokenizer(family: type[UnifiedModel], folder: str, device: torch.device) -> Any:
    """The model without weights, and its tokenizer with them."""
    if device.type == "cuda":  # TF32 changes which codes are chosen; containers may enable it
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    processor = family.open_processor(folder, max_length=1)
    with torch.device("meta"):
        model = family.build(folder, processor, attention="sdpa", gradient_checkpointing=False)
    model.load_frozen(folder, device)
    return model


def _squares(geometries: str, family: type[UnifiedModel], processor: Any) -> list[tuple[str, int]]:
    """(geometry, side) that rows can need: the side of generated pictures and, where they are codes too, that of sources."""
    names = [name.strip() for name in geometries.split("+")]
    for name in names:
        if name not in GEOMETRIES:
            raise ConfigError(unknown("geometry in --set codes.geometries=A+B", name, list(GEOMETRIES)))
    sides = {processor.image_size, processor.source_size} if family.reads_codes else {processor.image_size}
    return [(name, side) for name in dict.fromkeys(names) for side in sorted(sides)]
