"""The ranks of a run by what they divide, so that code says which ranks it means.

With `sequence_ranks` = N, N consecutive ranks share every row: together they are one data rank.

    world      0  1  2  3     weights, gradients, sums of losses, checkpoints, stopping
    data       0  0  1  1     samples, rows, hard buffer, evaluations
    sequence   0  1  0  1     the positions of a row, in the layers of the language model
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from megaunigame.errors import ConfigError
from megaunigame.parallel.ranks import Ranks

KEY = "engine.sequence_ranks"


def check_divides(sequence_ranks: int, ranks: int) -> None:
    """Raise ConfigError when `sequence_ranks` does not divide the ranks."""
    if ranks % sequence_ranks:
        legal = [str(number) for number in range(1, ranks + 1) if ranks % number == 0]
        raise ConfigError(
            f"{KEY}={sequence_ranks} does not divide the {ranks} ranks of this launch. Legal with so many: {', '.join(legal)}."
        )


@dataclass(frozen=True, kw_only=True)
class DataRanks(Ranks):
    """Data ranks of several processes each. A process communicates with those that have its place in the other data ranks.

    The processes of a data rank compute the same numbers, which a GPU may round differently. What a later step depends on
    must not differ, or they would go on with different rows: sums are those of the first of them, and so is what goes through
    `same`.
    """

    world: Ranks
    sharers: Ranks
    """The processes of this data rank."""

    @property
    def is_main(self) -> bool:
        return self.world.is_main

    @property
    def writes(self) -> bool:
        return self.sharers.rank == 0

    @property
    def everyone(self) -> Ranks:
        return self.world

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return self.sharers.first(super().all_reduce_sum(tensor))

    def same(self, tensor: Tensor) -> Tensor:
        return self.sharers.first(tensor)


@dataclass(frozen=True)
class Mesh:
    """Seen from this rank."""

    world: Ranks
    """All ranks: they divide weights, gradients and optimizer, add up losses, write checkpoints, and stop together."""
    data: Ranks
    """Ranks that read different samples: they divide streams, the rows of a step, the hard buffer and evaluations."""
    sequence: Ranks
    """Ranks that share every row; a set of one makes no collective."""

    @classmethod
    def of(cls, world: Ranks, sequence_ranks: int = 1, timeout_minutes: float = 30.0) -> Mesh:
        """Collective. Raises ConfigError when `sequence_ranks` does not divide the ranks."""
        check_divides(sequence_ranks, world.size)
        if sequence_ranks == 1:
            return cls(world, data=world, sequence=Ranks(0, 1, world.local_rank, world.device, world.met))
        data_rank, place = divmod(world.rank, sequence_ranks)
        here: dict[str, Any] = {"local_rank": world.local_rank, "device": world.device, "met": world.met}
        every, timeout = range(world.size), timedelta(minutes=timeout_minutes)
        # Every rank takes part in making every group.
        shared = [list(every[first : first + sequence_ranks]) for first in every[::sequence_ranks]]
        apart = [list(every[first::sequence_ranks]) for first in range(sequence_ranks)]
        of_row, _ = dist.new_subgroups_by_enumeration(shared, timeout=timeout)
        of_place, _ = dist.new_subgroups_by_enumeration(apart, timeout=timeout)
        assert isinstance(of_row, dist.ProcessGroup) and isinstance(of_place, dist.ProcessGroup)
        sequence = Ranks(place, sequence_ranks, **here, group=of_row)
        data = DataRanks(data_rank, len(shared), **here, group=of_place, world=world, sharers=sequence)
        return cls(world, data, sequence)
