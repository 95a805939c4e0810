"""Bytes per model element: weights, gradients, optimizer state."""

from __future__ import annotations

WEIGHT = {"bf16": 2, "fp32": 4}
"""`engine.precision` -> a weight."""
REDUCED = {"bf16": 2, "fp32": 4}
"""`engine.reduce_dtype` -> a gradient in the reduction over ranks."""
GRADIENT = 4
"""An accumulated gradient, in float32."""
OPTIMIZER = 12
"""The master weight and AdamW's two moments, in float32."""
AVERAGE = 4
"""The average of the master weight (`ema.decay`), in float32."""


def optimizer_bytes(*, averaged: bool) -> int:
    """Of the optimizer, with the average of the weights if one is kept."""
    return OPTIMIZER + AVERAGE * averaged
