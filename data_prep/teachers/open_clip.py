"""How well a picture and its text fit, by a CLIP (arXiv 2103.00020) of the open_clip library.

The number is stored and nothing is dropped: the training run chooses the threshold (a filter on the column
`clip_similarity`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megaunigame.data.conversation import question_answers
from megaunigame.data.decode import Sample
from megaunigame.errors import DataError
from megaunigame.judges.clip import FrozenClip

from .base import Failure, Machine, Prediction, Teacher
from .pretrained import digest


class OpenClip(Teacher):
    """Always float32: it is small compared to the other teachers, and thresholds are fine-grained."""

    tasks = ("clip",)

    @dataclass
    class Config:
        model: str = "ViT-B-32"
        """An open_clip architecture, or a folder with open_clip_config.json, weights and tokenizer files."""
        pretrained: str = ""
        """Weights of a named architecture: a file, a folder with one, or (with a network) a tag such as `openai`."""

    def __init__(self, task: str, config: Config, machine: Machine):
        self._clip = FrozenClip(config.model, config.pretrained, True, machine.device)
        self._config, self._batch = config, machine.batch
        self._digest = digest(self._clip.model)

    @property
    def identity(self) -> dict[str, Any]:
        weights = sum(parameter.numel() for parameter in self._clip.model.parameters())
        return {
            "model": self._config.model.rstrip("/").rpartition("/")[2],
            "pretrained": self._config.pretrained.rstrip("/").rpartition("/")[2],
            "weights_sha256": self._digest,
            "weights": weights,
            "license": "see the model's card",
        }

    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        predictions: list[Prediction] = [Failure("no caption and no conversation to compare the picture with")] * len(samples)
        texted = [(place, sample, text) for place, sample in enumerate(samples) if (text := text_of(sample))]
        for first in range(0, len(texted), self._batch):
            part = texted[first : first + self._batch]
            similarity = self._similarity([sample for _, sample, _ in part], [text for _, _, text in part])
            for (place, _, _), cosine in zip(part, similarity, strict=True):
                predictions[place] = cosine
        return predictions

    @torch.inference_mode()
    def _similarity(self, samples: list[Sample], texts: list[str]) -> list[float]:
        inputs = [
            self._clip.preprocess(sample.image[None].to(self._clip.device) / 127.5 - 1)
            for sample in samples
            if sample.image is not None
        ]
        pictures = self._clip.embed_inputs(torch.cat(inputs))
        cosine: list[float] = (pictures * self._clip.embed_texts(texts)).sum(-1).tolist()
        return cosine


def text_of(sample: Sample) -> str:
    """The caption; without one the conversation's first question and answer; else an empty text."""
    caption = sample.meta.get("caption")
    if isinstance(caption, str) and caption.strip():
        return caption.strip()
    try:
        question, answer = question_answers(sample)[0]
    except DataError:
        return ""
    return f"{question} {answer}"
