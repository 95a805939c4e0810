"""Losses and gradients of a family's passes on any device, in any precision and attention, and how far two of them differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaunigame.models.base import UnifiedModel
from megaunigame.parallel.accelerator import configure
from megaunigame.registry import find
from megaunigame.step.requests import GENERATE, UNDERSTAND
from megaunigame.step.rows import GenerateRow, UnderstandRow
from tests.models.shared import TURNS, generate, understand


@dataclass(frozen=True)
class PassResult:
    losses: Tensor
    """(B,) float32."""
    gradient: Tensor
    """(n,) float32: of the summed losses, into every parameter."""


@dataclass(frozen=True)
class Distance:
    """Relative."""

    losses: float
    """The largest of any row."""
    gradients: float
    """Length of the difference."""


def pass_results(
    family: str,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    attention: str = "sdpa",
    change: Callable[[UnifiedModel], Any] = lambda model: None,
) -> dict[str, PassResult]:
    """Every pass on the same rows. As in a run, `dtype` is that of the weights; buffers and frozen tokenizers are float32.
    `change`: of the model, before its passes."""
    configure(device, deterministic=False)
    model = find("models", family, UnifiedModel).load(str(folder), max_length=96, attention=attention)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.load_frozen(str(folder), device)
    model.to(device)
    change(model)
    pictures = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    inputs_of = {
        UNDERSTAND: understand(model, UnderstandRow([pictures[0]], TURNS), UnderstandRow([], TURNS[1:2])),
        GENERATE: generate(model, GenerateRow("a ball", pictures[1]), GenerateRow("is it large ?", pictures[2], pictures[3])),
    }
    results = {}
    for name, inputs in inputs_of.items():
        model.zero_grad()
        losses = model(inputs.to(device)).loss_sum
        losses.sum().backward()
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        results[name] = PassResult(losses.detach().cpu(), torch.cat([part.float().flatten() for part in parts]).cpu())
    return results


def apart(ours: PassResult, theirs: PassResult) -> Distance:
    """How far `ours` is from `theirs`."""
    losses = ((ours.losses - theirs.losses).abs() / theirs.losses).max()
    return Distance(float(losses), float((ours.gradient - theirs.gradient).norm() / theirs.gradient.norm()))
