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
