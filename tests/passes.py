"""Inputs of a pass of which a test says some fields. The others are there and say nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megaunigame.step.inputs import IGNORE, GenerateInputs, InputsT, UnderstandInputs
from megaunigame.step.labels import label_positions


def pass_inputs(kind: type[InputsT], tokens: Tensor, attention: Tensor | None = None, **fields: Any) -> InputsT:
    """Rows of term 0 without padding and without image, each with a loss position (understand pass: one per label)."""
    zeros = torch.zeros_like(tokens, dtype=torch.bool)
    defaults: dict[str, Any] = {
        "attention": ~zeros if attention is None else attention.bool(),
        "terms": torch.zeros(len(tokens), dtype=torch.long),
        "counts": torch.ones(len(tokens)),
        "image_positions": zeros,
    }
    if kind is UnderstandInputs:
        labels = fields.get("labels", torch.full_like(tokens, IGNORE, dtype=torch.long))
        defaults |= {"labels": labels, "label_positions": label_positions(labels), "images": tokens, "image_valid": tokens}
        defaults["counts"] = (labels != IGNORE).sum(1).float()
    elif kind is GenerateInputs:
        defaults["targets"] = tokens
    return kind(tokens=tokens, **{**defaults, **fields})
