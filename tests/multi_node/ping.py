"""The smallest program that needs both nodes: one all-reduce over DeepSpeed's process group.

Prints `rank R on ADDRESS: sum S` and exits 1 when the sum or the number of distinct nodes is wrong.
"""

from __future__ import annotations

import os
import socket
import sys
from datetime import timedelta

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.ops import __compatible_ops__


def own_address() -> str:
    """The address of the interface that leads to the master."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], 1))
        return probe.getsockname()[0]


def main() -> int:
    __compatible_ops__["deepspeed_shm_comm"] = False  # or init_distributed compiles it
    deepspeed.init_distributed(dist_backend="gloo", timeout=timedelta(seconds=60))
    rank, world_size = dist.get_rank(), dist.get_world_size()
    total = torch.tensor([float(rank + 1)])
    dist.all_reduce(total)
    addresses: list[str | None] = [None] * world_size
    dist.all_gather_object(addresses, own_address())
    print(f"rank {rank} on {addresses[rank]}: sum {total.item():g}", flush=True)
    dist.destroy_process_group()
    right = total.item() == world_size * (world_size + 1) / 2 and len(set(addresses)) == world_size == 2
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
