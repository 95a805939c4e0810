"""Depth Anything V2 (arXiv 2406.09414), Small, Base or Large, and other relative DPT-style models, through transformers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForDepthEstimation

from megaunigame.data.decode import Sample
from megaunigame.errors import ModelError
from megaunigame.settings import at_least

from .base import Machine, Prediction, Teacher
from .pretrained import Checkpoint

RELATIVE_MODELS = ("depth_anything", "dpt")


class DepthAnything(Teacher):
    tasks = ("depth",)
    takes_dtype = True

    @dataclass
    class Config:
        model: str = "depth-anything/Depth-Anything-V2-Small-hf"
        """Hub id or folder. The paper of UniMRG used ...-Large-hf, which excludes commercial use."""
        revision: str | None = None
        """Branch, tag or commit of a hub id."""
        size: int = at_least(0, 0)
        """Pixels of the shorter side the model sees; 0: what its preprocessor_config.json says (518)."""

    def __init__(self, task: str, config: Config, machine: Machine):
        self._checkpoint = Checkpoint(AutoModelForDepthEstimation, config.model, config.revision, machine)
        kind = self._checkpoint.network.config
        if kind.model_type not in RELATIVE_MODELS or getattr(kind, "depth_estimation_type", "relative") != "relative":
            raise ModelError(
                f"{config.model}: is of type {kind.model_type} and gives distances; give a model of relative inverse depth "
                f"(near = large), of type {' or '.join(RELATIVE_MODELS)}."
            )
        self._config, self._machine = config, machine
        self._resize = {"size": {"height": config.size, "width": config.size}} if config.size else {}

    @property
    def identity(self) -> dict[str, Any]:
        return {**self._checkpoint.identity, "size": self._config.size}

    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Pictures keep their aspect, so only those resized to the same size share a forward."""
        same_size: dict[torch.Size, list[tuple[int, Tensor]]] = defaultdict(list)
        for place, sample in enumerate(samples):
            pixels = self._pixels(sample)
            same_size[pixels.shape].append((place, pixels))
        depths: dict[int, Prediction] = {}
        for group in same_size.values():
            for first in range(0, len(group), self._machine.batch):
                places, pictures = zip(*group[first : first + self._machine.batch], strict=True)
                depths.update(zip(places, self._forward(torch.stack(pictures)), strict=True))
        return [depths[place] for place in range(len(samples))]

    def _pixels(self, sample: Sample) -> Tensor:
        """(3, h, w), resized and normalized on the device: fast on a GPU, which would wait for a CPU thread."""
        inputs = self._checkpoint.processor(
            images=sample.image, return_tensors="pt", device=self._machine.device, **self._resize
        )
        return inputs["pixel_values"][0]

    @torch.inference_mode()
    def _forward(self, pixels: Tensor) -> list[Prediction]:
        """(b, 3, h, w) -> b maps (h, w)."""
        output = self._checkpoint.network(pixel_values=pixels.to(self._machine.dtype))
        return list(output.predicted_depth.float().cpu().numpy())
