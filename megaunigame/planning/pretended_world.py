"""A rank without the others: every collective returns at once, with tensors of the right shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megaunigame.parallel.ranks import Ranks


class PretendedWorld(Ranks):
    """All ranks have the values of this one."""

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return tensor.mul_(self.size)

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        return tensor

    def any(self, flag: bool) -> bool:
        return flag

    def same(self, tensor: Tensor) -> Tensor:
        return tensor

    def first(self, tensor: Tensor) -> Tensor:
        return tensor

    def exchange(self, parts: Tensor) -> Tensor:
        return torch.empty_like(parts)

    def collect(self, part: Tensor) -> Tensor:
        return part.new_empty(self.size, *part.shape)

    def sum_parts(self, parts: Tensor) -> Tensor:
        return torch.empty_like(parts[0])

    def all_gather(self, tensor: Tensor) -> Tensor:
        return tensor.unsqueeze(0).repeat(self.size, 1)

    def all_to_all(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        return [parts[0].new_zeros(size) for size in sizes]

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value] * self.size

    def gather_object(self, value: Any) -> list[Any]:
        return [value] * self.size if self.is_main else []

    def broadcast_object(self, value: Any) -> Any:
        return value

    def bounds(self, numbers: Sequence[int]) -> tuple[list[int], list[int]]:
        return list(numbers), list(numbers)

    def barrier(self) -> None:
        return None
