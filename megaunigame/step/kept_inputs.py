"""Inputs of a pass as plain tensors and JSON values, and back: to keep rows in files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from megaunigame.step.inputs import GenerateInputs, PassInputs, UnderstandInputs

KINDS: dict[str, type[PassInputs]] = {kind.pass_name: kind for kind in (UnderstandInputs, GenerateInputs)}
LEFT_OUT = ("taps", "gradient_rows", "levels")
"""Fields about the step, not about the rows; and of bytes, which are kept as values."""


def to_parts(inputs: PassInputs) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Field -> its tensor, on the host; field -> its JSON value."""
    inputs = inputs.with_values()
    given = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(inputs) if f.name not in LEFT_OUT}
    tensors = {name: value.detach().cpu().contiguous() for name, value in given.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in given.items() if name not in tensors and value is not None}


def from_parts(pass_name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> PassInputs:
    """The inputs of the pass `pass_name`. Raises KeyError or TypeError when the parts are not those of such a pass."""
    fields: dict[str, Any] = {**tensors, **values}
    fields["texts"] = [tuple(text) for text in values.get("texts", [])]  # JSON has no tuples
    return KINDS[pass_name](**fields)
