"""Random numbers for the rows of a batch: all from one generator, or those of each row from a generator of its own.

With generators of their own, what a row draws does not depend on the other rows, nor on how many they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor

from megaunigame.models.base import Generators


def uniform(shape: tuple[int, ...], generators: Generators) -> Tensor:
    """(B, ...) float32 in [0, 1), on the device of the generators; row b is drawn from the b-th of several."""
    return _drawn(torch.rand, shape, generators)


def normal(shape: tuple[int, ...], generators: Generators) -> Tensor:
    """(B, ...) float32, standard normal."""
    return _drawn(torch.randn, shape, generators)


def of_keys(keys: Sequence[str]) -> list[torch.Generator]:
    """One for each key of a sample, on the CPU: what it draws is the same in any batch on any rank, so that conditions and
    checkpoints can be compared."""
    return [torch.Generator().manual_seed(crc32(key.encode())) for key in keys]


def of_rows(generators: Generators, rows: int) -> list[torch.Generator]:
    """The generator of each row, `rows` in all."""
    if isinstance(generators, torch.Generator):
        return [generators] * rows
    if len(generators) != rows:
        raise ValueError(f"{len(generators)} generators for {rows} rows; give one for all, or one for each.")
    return list(generators)


def _drawn(draw, shape: tuple[int, ...], generators: Generators) -> Tensor:  # type: ignore[no-untyped-def]
    if isinstance(generators, torch.Generator):
        return draw(shape, generator=generators, device=generators.device)
    return torch.stack([draw(shape[1:], generator=own, device=own.device) for own in of_rows(generators, shape[0])])
