"""Random weights of any size, made in place: to measure speed and memory of a model without a checkpoint.

Values depend on (seed, name of the parameter, rank) alone. A rank fills its own slice of each parameter: there is no
collective, and no parameter is ever whole.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from megaunigame.parallel.ranks import Ranks
from megaunigame.randomness import derive

STD = 0.02
"""Of matrices. Vectors are 1, biases 0."""


@torch.no_grad()
def fill_randomly(model: nn.Module, seed: int, world: Ranks) -> None:
    """Give every parameter of `model` random values; the same on all ranks if it is not partitioned."""
    parameters: Iterator[tuple[str, Any]] = model.named_parameters()
    for name, parameter in parameters:
        if not hasattr(parameter, "ds_tensor"):
            _fill(parameter.data, name, parameter.shape, seed, 0)
            continue
        _fill(parameter.ds_tensor.data, name, parameter.ds_shape, seed, world.rank)
        if parameter.ds_secondary_tensor is not None:
            _fill_secondary(parameter, name, seed, world)


def _fill_secondary(parameter: Any, name: str, seed: int, world: Ranks) -> None:
    """The copy partitioned within a group of ranks (zero_hpz_partition_size): the slices of several consecutive ranks."""
    group = parameter.ds_secondary_tensor_group_size
    first = world.rank % group * (world.size // group)
    for number, part in enumerate(parameter.ds_secondary_tensor.data.split(parameter.ds_tensor.numel())):
        _fill(part, name, parameter.ds_shape, seed, first + number)


def _fill(values: Tensor, name: str, shape: torch.Size, seed: int, rank: int) -> None:
    """Fill `values`, the whole or a part of a parameter of this `shape`."""
    if len(shape) > 1 and math.prod(shape) > max(shape):
        generator = torch.Generator(values.device).manual_seed(derive(seed, zlib.crc32(name.encode()), rank))
        values.normal_(std=STD, generator=generator)
    else:
        values.fill_(0.0 if name.endswith("bias") else 1.0)
