"""Copying weights into a plain (not partitioned) model. The training engine loads in its own way, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from megaunigame.errors import ModelError
from megaunigame.models.base import UnifiedModel, Weights
from megaunigame.storage.foreign_text import one_line

M = TypeVar("M", bound=UnifiedModel)
SHOWN = 5
"""Names quoted in an error message."""


def check_names(expected: Iterable[str], found: Iterable[str], what: str) -> None:
    """Raise ModelError unless the checkpoint `what` has exactly the expected names."""
    expected, found = set(expected), set(found)
    complaints = []
    for title, names in (("missing", expected - found), ("unexpected", found - expected)):
        if names:
            shown = one_line(", ".join(sorted(names)[:SHOWN]), 1000)
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            complaints.append(f"{len(names)} {title}: {shown}{more}")
    if complaints:
        raise ModelError(
            f"{what} is the checkpoint of another model ({'; '.join(complaints)}). "
            f"Expected {len(expected)} tensors, such as {min(expected)}. "
            "Give a folder whose config.json and weights belong together."
        )


def check_shapes(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size], what: str) -> None:
    """Raise ModelError at the first tensors whose shapes differ."""
    wrong = [n for n in sorted(expected) if expected[n] != found[n]]
    if wrong:
        shown = ", ".join(f"{n} is {tuple(found[n])} instead of {tuple(expected[n])}" for n in wrong[:SHOWN])
        raise ModelError(
            f"{what} is the checkpoint of another model: {len(wrong)} tensors have other shapes than "
            f"in config.json ({shown}). Give a folder whose config.json and weights belong together."
        )


def load_whole(
    family: type[M],
    path: str | Path,
    weights: Weights,
    *,
    attention: str,
    max_length: int,
    gradient_checkpointing: bool,
    device: torch.device | str,
    dtype: torch.dtype,
) -> M:
    """The model of the folder `path` with these weights, in one process, without an engine; in eval mode.

    `dtype`: of all but the frozen tokenizer. The host never holds more than one tensor of weights for another device.
    """
    processor = family.open_processor(str(path), max_length=max_length)
    model = family.build(str(path), processor, attention=attention, gradient_checkpointing=gradient_checkpointing)
    for parameter in model.parameters():  # not model.to(dtype): the rotary frequencies stay float32
        parameter.data = torch.empty(parameter.shape, dtype=dtype, device=device)
    model.check_frozen(str(path))
    load_plain(model, weights, str(path))
    model.load_frozen(str(path), torch.device(device))
    return model.to(device).eval()  # type: ignore[return-value]  # `build` makes one of its own class


@torch.no_grad()
def load_plain(model: nn.Module, weights: Weights, what: str = "The checkpoint") -> None:
    """Copy `weights` into the parameters and persistent buffers of `model`, converted to their dtype and device."""
    tensors = model.state_dict(keep_vars=True)
    check_names(tensors, weights.names(), what)
    for name, tensor in tensors.items():
        value = weights.read(name)
        check_shapes({name: tensor.shape}, {name: value.shape}, what)
        tensor.copy_(value)
