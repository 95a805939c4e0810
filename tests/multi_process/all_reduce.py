"""The smallest multi-process program, for the test of the launcher: `python -m tests.multi_process.all_reduce MODE`."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta


def main(mode: str) -> None:
    print(f"pid {os.getpid()}")
    if mode == "hang":
        time.sleep(600)
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    rank = dist.get_rank()
    if mode == "fail" and rank == 1:
        raise RuntimeError("rank 1 gives up")
    if mode == "mismatch" and rank == 1:
        dist.all_reduce(torch.ones(2))
    total = torch.tensor([float(rank + 1)])
    dist.all_reduce(total)
    print(f"sum {total.item():g} of {dist.get_world_size()}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
