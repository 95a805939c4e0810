"""Bytes that one element of a model takes in a run, by what holds it."""

from __future__ import annotations

WEIGHT = {"bf16": 2, "fp32": 4}
"""`engine.precision` -> a weight."""
REDUCED = {"bf16": 2, "fp32": 4}
"""`engine.reduce_dtype` -> a gradient on its way between the ranks."""
GRADIENT = 4
"""An accumulated gradient, in float32."""
OPTIMIZER = 12
"""The master weight and AdamW's two moments, in float32."""
