"""The model of a recipe on the meta device: every shape and dtype of the run, and no memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from megaunigame.models.base import Processor, UnifiedModel
from megaunigame.passes import PassInputs

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def meta_model(
    family: type[UnifiedModel], path: str, processor: Processor, *, attention: str, gradient_checkpointing: bool, precision: str
) -> UnifiedModel:
    """The model in `path` from its configuration alone, in training mode, with its frozen tokenizer in float32.

    `precision`: a value of `engine.precision`; buffers keep their own dtype, as in a run.
    """
    with torch.device("meta"):
        model = family.build(path, processor, attention=attention, gradient_checkpointing=gradient_checkpointing)
        model.hold_frozen(model.build_frozen())
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[precision])
    return model.train()


def on_meta(inputs: PassInputs) -> PassInputs:
    """The same inputs without their data."""
    return dataclasses.replace(inputs, **{f.name: _moved(getattr(inputs, f.name)) for f in dataclasses.fields(inputs)})


def _moved(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value
