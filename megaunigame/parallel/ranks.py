"""The ranks of a run, and the collectives that the engine does not make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megaunigame.parallel.accelerator import choose_device, configure, use_expandable_segments
from megaunigame.parallel.environment import cpu_threads, place_of_process
from megaunigame.parallel.meeting import Meeting, meet
from megaunigame.parallel.pulse import PULSE


@dataclass(frozen=True)
class Ranks:
    """A set of ranks, seen from this one. Every method is a collective: all its ranks call it, in the same order."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    met: Meeting | None = None
    """None: no other process is there."""
    group: dist.ProcessGroup | None = None
    """None: all processes."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    @property
    def writes(self) -> bool:
        """Whether this process writes what is of its rank in this set."""
        return True

    @property
    def everyone(self) -> Ranks:
        """All ranks of the run, for what all must agree about."""
        return self

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """Largest value over the ranks, in place."""
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tensor

    def same(self, tensor: Tensor) -> Tensor:
        """The tensor, with the same bits on all processes that have the same rank in this set: there may be several in a set of
        data ranks (`mesh.DataRanks`)."""
        return tensor

    def first(self, tensor: Tensor) -> Tensor:
        """That of rank 0, on every rank, in place."""
        dist.broadcast(tensor, src=self._of_first, group=self.group)
        return tensor

    def exchange(self, parts: Tensor) -> Tensor:
        """(W, ...): part r goes to rank r -> (W, ...): what came from each rank, in rank order."""
        received = torch.empty_like(parts, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, parts.contiguous(), group=self.group)
        return received

    def collect(self, part: Tensor) -> Tensor:
        """(...), equal in shape on all ranks -> (W, ...): that of every rank, in rank order."""
        collected = part.new_empty(self.size, *part.shape)
        dist.all_gather_single(collected.view(-1), part.contiguous().view(-1), group=self.group)
        return collected

    def sum_parts(self, parts: Tensor) -> Tensor:
        """(W, ...) -> (...): part r of every rank, summed, on rank r."""
        total = torch.empty_like(parts[0], memory_format=torch.contiguous_format)
        dist.reduce_scatter_single(total.view(-1), parts.contiguous().view(-1), group=self.group)
        return total

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Over the host: no device waits for it."""
        found = bool(self.all_reduce_max(torch.tensor([flag], dtype=torch.uint8)))
        PULSE.mark()  # an evaluation has no other sign that it goes on
        return found

    def all_gather(self, tensor: Tensor) -> Tensor:
        """(n,) of this rank -> (W, n), in rank order; n is the same on all ranks."""
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor, group=self.group)
        return torch.stack(gathered)

    def all_to_all(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """`parts[r]` goes to rank r; returns what came from each rank. Tensors are 1-D of one dtype.

        `sizes[r]` is the length of what rank r sends here; every rank must know it before.
        """
        received = parts[0].new_empty(sum(sizes))
        dist.all_to_all_single(received, torch.cat(list(parts)), list(sizes), [len(part) for part in parts], group=self.group)
        return list(received.split(list(sizes)))

    def all_gather_object(self, value: Any) -> list[Any]:
        """The value of every rank, in rank order."""
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value, group=self.group)
        PULSE.mark()
        return gathered

    def gather_object(self, value: Any) -> list[Any]:
        """The value of every rank, in rank order, on the main rank; nothing on the others."""
        gathered: list[Any] = [None] * self.size if self.rank == 0 else []
        dist.gather_object(value, gathered or None, dst=self._of_first, group=self.group)
        PULSE.mark()
        return gathered if self.is_main else []

    def broadcast_object(self, value: Any) -> Any:
        """The value of rank 0, on every rank. Costs the others nothing but its bytes."""
        values = [value]
        dist.broadcast_object_list(values, src=self._of_first, group=self.group)
        PULSE.mark()
        return values[0]

    def bounds(self, numbers: Sequence[int]) -> tuple[list[int], list[int]]:
        """Smallest and largest of each number (63 bits) over the ranks. On the host: does not wait for a device."""
        both = torch.tensor([*numbers, *(-number for number in numbers)], dtype=torch.int64)
        dist.all_reduce(both, op=dist.ReduceOp.MAX, group=self.group)
        PULSE.mark()
        largest, negated = both[: len(numbers)].tolist(), both[len(numbers) :].tolist()
        return [-number for number in negated], largest

    def barrier(self) -> None:
        dist.barrier(group=self.group)
        PULSE.mark()

    @property
    def _of_first(self) -> int:
        """Number, among all processes, of rank 0 of this set."""
        return 0 if self.group is None else dist.get_global_rank(self.group, 0)

    def close(self) -> None:
        """Leave the process group after a barrier: a rank that leaves early can crash one that still communicates with it."""
        dist.barrier()
        dist.destroy_process_group()


def start_world(timeout_minutes: float, *, deterministic: bool = False) -> Ranks:
    """Join the process group that a launcher described in the environment; without a launcher, a world of one rank.

    `deterministic`: see `accelerator.configure`. Raises ConfigError without a GPU unless DS_ACCELERATOR=cpu is set.
    """
    place = place_of_process()
    use_expandable_segments()
    device = choose_device(place.local_rank)
    configure(device, deterministic=deterministic)
    if device.type == "cpu":
        torch.set_num_threads(cpu_threads())
    meeting = None
    if not dist.is_initialized():
        # One rank needs no port, which another process might take.
        meeting = None if place.alone else meet(place, 60 * timeout_minutes)
        store = dist.HashStore() if meeting is None else meeting.store
        met: dict[str, Any] = {"store": store, "rank": place.rank, "world_size": place.size}
        dist.init_process_group(timeout=timedelta(minutes=timeout_minutes), **_backend(device), **met)
    return Ranks(place.rank, place.size, place.local_rank, device, meeting)


def _backend(device: torch.device) -> dict[str, Any]:
    """Arguments of the process group. On a GPU, Python objects (such as pictures of an evaluation) go over the host: NCCL would
    pad each to the largest and hold those of all ranks in GPU memory."""
    if device.type == "cpu":
        return {"backend": "gloo"}
    return {"backend": "cpu:gloo,cuda:nccl", "device_id": device}
