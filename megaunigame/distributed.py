"""The ranks of a run: who we are, and the few collectives the trainer makes itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This process among all ranks. Every method is a collective: all ranks call it, in the same order."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """Largest value over the ranks, in place."""
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """(n,) of this rank -> (W, n), in rank order; n is the same on all ranks."""
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor)
        return torch.stack(gathered)

    def all_to_all(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """`parts[r]` goes to rank r; returns what came from each rank. Tensors are 1-D of one dtype.

        `sizes[r]` is the length of what rank r sends here; every rank must know it beforehand.
        """
        received = parts[0].new_empty(sum(sizes))
        dist.all_to_all_single(received, torch.cat(list(parts)), list(sizes), [len(part) for part in parts])
        return list(received.split(list(sizes)))

    def all_gather_object(self, value: Any) -> list[Any]:
        """The value of every rank, in rank order."""
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        dist.barrier()

    def close(self) -> None:
        """Leave the process group, together: a rank that goes first can bring down the one that still talks to it."""
        dist.barrier()
        dist.destroy_process_group()


def start_world(timeout_minutes: float) -> World:
    """Join the process group a launcher described in the environment; without a launcher, be a world of one.

    Reads RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as deepspeed, torchrun and srun wrappers set them.
    """
    if "WORLD_SIZE" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    if on_gpu:
        torch.cuda.set_device(local_rank)
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if not on_gpu:
        # Must be set before deepspeed is imported: its own detection warns and guesses.
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(minutes=timeout_minutes))
    return World(rank, size, local_rank, device)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
