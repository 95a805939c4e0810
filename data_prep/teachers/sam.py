"""SAM (arXiv 2304.02643), SAM 2 and similar models: automatic mask generation through the pipeline of transformers.

Settings and defaults are those of `SamAutomaticMaskGenerator`; a grid of points prompts the model, and masks that are
uncertain, unstable or duplicates are dropped. The pipeline takes one picture at a time; a batch is a batch of points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoModelForMaskGeneration, pipeline

from megaunigame.data.decode import Sample
from megaunigame.settings import at_least

from .base import Failure, Machine, Prediction, Teacher
from .ids import ids_from_masks
from .pictures import shrunk
from .pretrained import Checkpoint


class Sam(Teacher):
    tasks = ("segmentation",)
    takes_dtype = True

    @dataclass
    class Config:
        model: str = "facebook/sam-vit-huge"
        """Hub id or folder."""
        revision: str | None = None
        """Branch, tag or commit of a hub id."""
        points_per_side: int = at_least(1, 32)
        """The grid has the square of this; transformers calls it `points_per_crop`."""
        pred_iou_thresh: float = 0.88
        """Least IoU the model itself predicts for a mask; 0 or less keeps all."""
        stability_score_thresh: float = 0.95
        """Least IoU of a mask at two cut-offs; 0 or less keeps all."""
        stability_score_offset: float = 1.0
        """Distance of the two cut-offs, in logits."""
        box_nms_thresh: float = 0.7
        """Of masks whose boxes overlap more than this, the best stays."""
        points_per_batch: int = at_least(1, 64)
        """Points in one forward of the decoder: memory against speed."""
        longest_side: int = at_least(1, 2048)
        """Larger pictures are shrunk to it first: masks of all points are held at the picture's size."""

    def __init__(self, task: str, config: Config, machine: Machine):
        checkpoint = Checkpoint(AutoModelForMaskGeneration, config.model, config.revision, machine)
        self._config, self._model_identity = config, checkpoint.identity
        self._pipeline = pipeline(
            "mask-generation", model=checkpoint.network, image_processor=checkpoint.processor, device=machine.device
        )
        self._finite = torch.ones((), dtype=torch.bool, device=machine.device)
        checkpoint.network.register_forward_hook(self._checked)

    @property
    def identity(self) -> dict[str, Any]:
        settings = asdict(self._config)
        for name in ("model", "revision", "points_per_batch"):  # the first two are in the model's identity
            del settings[name]
        return {**self._model_identity, **settings}

    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        return [self._segment(sample) for sample in samples]

    @torch.inference_mode()
    def _segment(self, sample: Sample) -> Prediction:
        picture = shrunk(sample, self._config.longest_side)
        self._finite.fill_(True)
        masks = self._pipeline(
            picture,
            points_per_crop=self._config.points_per_side,
            points_per_batch=self._config.points_per_batch,
            pred_iou_thresh=self._config.pred_iou_thresh,
            stability_score_thresh=self._config.stability_score_thresh,
            stability_score_offset=self._config.stability_score_offset,
            crops_nms_thresh=self._config.box_nms_thresh,
        )["masks"]
        # NaN scores fail every threshold: without this check the picture would seem to hold nothing.
        if not bool(self._finite):
            return Failure("the segmentation teacher gave scores that are NaN or infinite")
        return ids_from_masks([mask.cpu().numpy() for mask in masks], picture.height, picture.width)

    def _checked(self, network: Any, inputs: Any, output: Any) -> Any:
        """Runs after every forward of the network."""
        # The pipeline compares boxes in float32 with scores, which torchvision refuses in another type.
        output.iou_scores, output.pred_masks = output.iou_scores.float(), output.pred_masks.float()
        self._finite &= torch.isfinite(output.iou_scores).all()
        return output
