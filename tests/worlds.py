"""Worlds without a process group: one rank whose peers have what it has, and ranks that are threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from megaunigame.parallel.ranks import Ranks
from megaunigame.planning.pretended_world import PretendedWorld

T = TypeVar("T")
CPU = torch.device("cpu")


class OneRank(PretendedWorld):
    """Rank 0 of `size` ranks that all have what this one has. Its collectives take only tensors on its device."""

    def __init__(self, size: int = 1, device: torch.device = CPU):
        super().__init__(rank=0, size=size, local_rank=0, device=device)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return super().all_reduce_sum(self._here(tensor))

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        return self._here(tensor)

    def all_gather(self, tensor: Tensor) -> Tensor:
        return super().all_gather(self._here(tensor))

    def all_to_all(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        assert [len(self._here(part)) for part in parts] == list(sizes)
        return list(parts)

    def _here(self, tensor: Tensor) -> Tensor:
        assert tensor.device == self.device
        return tensor


class ThreadWorld(Ranks):
    """One of `size` ranks that are threads. `calls` has the name and the length of each collective on tensors."""

    def __init__(self, rank: int, places: list[Any], meeting: threading.Barrier):
        super().__init__(rank=rank, size=len(places), local_rank=rank, device=CPU)
        self.places, self.meeting = places, meeting
        self.calls: list[tuple[str, int]] = []

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        self.calls.append(("all_reduce_sum", len(tensor)))
        return tensor.copy_(torch.stack(self.all_gather_object(tensor.clone())).sum(0))

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        self.calls.append(("all_reduce_max", len(tensor)))
        return tensor.copy_(torch.stack(self.all_gather_object(tensor.clone())).max(0).values)

    def first(self, tensor: Tensor) -> Tensor:
        self.calls.append(("first", tensor.numel()))
        return tensor.copy_(self.all_gather_object(tensor.clone())[0])

    def exchange(self, parts: Tensor) -> Tensor:
        self.calls.append(("exchange", parts.numel()))
        return torch.stack([sent[self.rank] for sent in self.all_gather_object(parts.clone())])

    def collect(self, part: Tensor) -> Tensor:
        self.calls.append(("collect", part.numel()))
        return torch.stack(self.all_gather_object(part.clone()))

    def sum_parts(self, parts: Tensor) -> Tensor:
        self.calls.append(("sum_parts", parts.numel()))
        return torch.stack(self.all_gather_object(parts.clone()))[:, self.rank].sum(0)

    def all_gather(self, tensor: Tensor) -> Tensor:
        assert tensor.dim() == 1
        self.calls.append(("all_gather", len(tensor)))
        return torch.stack(self.all_gather_object(tensor.clone()))

    def all_to_all(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        self.calls.append(("all_to_all", 0))
        received = [sent[self.rank] for sent in self.all_gather_object([part.clone() for part in parts])]
        assert [len(part) for part in received] == list(sizes), "the receiver expected another length"
        return received

    def all_gather_object(self, value: Any) -> list[Any]:
        self.places[self.rank] = value
        self.barrier()
        gathered = list(self.places)
        self.barrier()
        return gathered

    def gather_object(self, value: Any) -> list[Any]:
        gathered = self.all_gather_object(value)
        return gathered if self.is_main else []

    def broadcast_object(self, value: Any) -> Any:
        return self.all_gather_object(value)[0]

    def bounds(self, numbers: Sequence[int]) -> tuple[list[int], list[int]]:
        self.calls.append(("bounds", len(numbers)))
        columns = list(zip(*self.all_gather_object(list(numbers)), strict=True))
        return [min(column) for column in columns], [max(column) for column in columns]

    def barrier(self) -> None:
        self.meeting.wait()


def on_ranks(size: int, work: Callable[[ThreadWorld], T]) -> list[T]:
    """The result of `work(world)` on every rank; a rank that fails breaks the barrier of the others."""
    places, results = [None] * size, [None] * size  # type: list[Any], list[Any]
    meeting = threading.Barrier(size, timeout=10)

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadWorld(rank, places, meeting))
        except BaseException as error:  # raised again below
            results[rank] = error
            meeting.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    return results
