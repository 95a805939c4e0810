"""A parity fixture: a folder of numbers computed with the official code of a method, and the comparison with ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from megaunigame.models.weights.loading import load_plain
from megaunigame.models.weights.renamed import KeyTable
from megaunigame.models.weights.tensor_files import TensorFiles


@dataclass(frozen=True)
class Tolerance:
    """Largest legal |ours - theirs|: absolute + relative * |theirs|, or + of_largest * max |theirs| of the tensor."""

    absolute: float = 0.0
    relative: float = 0.0
    of_largest: float = 0.0

    def allowed(self, theirs: Tensor) -> Tensor:
        return self.absolute + self.relative * theirs.abs() + self.of_largest * theirs.abs().max()

    def __str__(self) -> str:
        parts = {"abs": self.absolute, "rel": self.relative, "of largest": self.of_largest}
        return " + ".join(f"{value:g} {name}" for name, value in parts.items() if value) or "exact"


EXACT = Tolerance()
FLOATS = Tolerance(absolute=1e-4, relative=1e-4)
GRADIENTS = Tolerance(of_largest=1e-3)
GROUPS, EPSILON = 32, 1e-6
"""Constants of the layers of vision tokenizers, which no configuration moves."""


@dataclass(frozen=True)
class Fixture:
    """The contents of a fixture folder."""

    folder: Path
    config: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> Fixture:
        return cls(
            folder,
            json.loads((folder / "config.json").read_text()),
            load_file(folder / "inputs.safetensors"),
            load_file(folder / "outputs.safetensors"),
        )

    @property
    def kind(self) -> str:
        """Key `fixture` of config.json; the folder's name where the configuration does not say."""
        return self.config.get("fixture", self.folder.resolve().name)

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    def load(self, keys: KeyTable, model: nn.Module | None, frozen: nn.Module | None) -> None:
        """Its weights, which have official keys, into a model and a frozen tokenizer."""
        for module, weights in zip((model, frozen), keys.open(TensorFiles([self.weights]), self.folder), strict=True):
            if module is not None:
                load_plain(module, weights)

    def keys_of(self, prefix: str) -> dict[str, str]:
        """Outputs whose names begin with `prefix` -> the rest of the name, an official key."""
        return {name: name.removeprefix(prefix) for name in self.outputs if name.startswith(prefix)}


def taken(sizes: Mapping[str, Any], *same: str, **renamed: str) -> dict[str, Any]:
    """Neutral sizes of a fixture: those that keep their name, and those that have another where they go."""
    return {name: sizes[name] for name in same} | {name: sizes[theirs] for name, theirs in renamed.items()}


@dataclass(frozen=True)
class Line:
    """The verdict on one output."""

    name: str
    error: float | None
    tolerance: Tolerance
    ok: bool

    def __str__(self) -> str:
        error = "not checked" if self.error is None else f"{self.error:.2e}"
        return f"{'ok  ' if self.ok else 'MISS'} {self.name:<75} {error:>11}  ({self.tolerance})"


def compare(
    expected: Mapping[str, Tensor], computed: Mapping[str, Tensor], tolerance: Callable[[str], Tolerance]
) -> list[Line]:
    """One line per expected output; an output that nobody computes, a NaN or another shape is a miss."""
    lines = []
    for name, theirs in sorted(expected.items()):
        allowed = tolerance(name)
        ours = computed.get(name)
        if ours is None or ours.shape != theirs.shape:
            lines.append(Line(name, None, allowed, False))
            continue
        theirs = theirs.double()
        difference = (ours.detach().double() - theirs).abs()
        within = bool((difference <= allowed.allowed(theirs)).all())
        lines.append(Line(name, float(difference.max()), allowed, within and bool(torch.isfinite(difference).all())))
    return lines
