"""The weights of a model with the adapters of a folder merged into them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from megaunigame.checkpoint.adapter_folder import AdapterWeights, read_lora
from megaunigame.checkpoint.trained import with_adapter
from megaunigame.errors import ModelError
from megaunigame.models.base import Weights
from megaunigame.storage.foreign_text import quoted
from megaunigame.storage.pieces import Piece

GIVE = "Give the base that they were trained on (--base FOLDER, in Python base=FOLDER)."
AGAIN = "The folder is not complete, or its settings are those of other adapters. Copy it again."


class AdaptedWeights:
    """Implements `Weights`; adapters are merged (`with_adapter`). One tensor is read at a time."""

    def __init__(self, base: Weights, folder: Path):
        """Raises ConfigError or ModelError for a folder that holds no adapters for this base."""
        lora = read_lora(folder)
        self.base, self.adapters = base, AdapterWeights(folder)
        self.rank, self.scale, self.dora = lora.rank, lora.scale, lora.dora
        modules = {name.rpartition(".lora_")[0] for name in self.adapters.names()}
        if unknown := sorted({f"{module}.weight" for module in modules} - base.names()):
            raise ModelError(
                f"{folder} has adapters for {len(unknown)} weights that its base has not, such as {quoted(unknown[0])}. {GIVE}"
            )
        for module in sorted(modules):
            self._check(module, folder)

    def _check(self, module: str, folder: Path) -> None:
        """Raise ModelError unless the adapter of a module is whole, and fits its weight."""
        low, high, length = names = _parts(module)
        weight, known = tuple(self.base.shape(f"{module}.weight")), self.adapters.names()
        found = {name: tuple(self.adapters.shape(name)) for name in names if name in known}
        wanted = {low, high, length} if self.dora else {low, high}
        if odd := sorted(wanted ^ found.keys()):
            what = "no" if odd[0] in wanted else "without use_dora the"
            raise ModelError(f"{folder} has {what} tensor {quoted(odd[0], 200)}. {AGAIN}")
        ends = (*found[high][:1], *found[low][1:])
        if len(ends) != 2 or ends != weight:
            raise ModelError(
                f"The adapters of {quoted(f'{module}.weight')} are for a weight of {ends}; that of the base is {weight}. {GIVE}"
            )
        rows, columns = weight
        shapes = {low: (self.rank, columns), high: (rows, self.rank), length: (rows,)}
        for name, shape in found.items():
            if shape != shapes[name]:
                raise ModelError(f"{folder}: {quoted(name, 200)} has shape {shape}, not {shapes[name]}. {AGAIN}")

    def names(self) -> set[str]:
        return self.base.names()

    def shape(self, name: str) -> torch.Size:
        return self.base.shape(name)

    def read(self, name: str) -> Tensor:
        weight, known = self.base.read(name), self.adapters.names()
        low, high, length = _parts(name.removesuffix(".weight"))
        if low not in known:
            return weight
        rows = self.adapters.read(length) if length in known else None
        return with_adapter(weight, self.adapters.read(low), self.adapters.read(high), self.scale, rows, name)

    def pieces(self, name: str) -> Sequence[Piece] | None:
        low = _parts(name.removesuffix(".weight"))[0]
        return None if low in self.adapters.names() else self.base.pieces(name)


def _parts(module: str) -> tuple[str, str, str]:
    """Names of A, B and the lengths of DoRA."""
    low, high, length = (f"{module}.lora_{part}.default.weight" for part in ("A", "B", "magnitude_vector"))
    return low, high, length
