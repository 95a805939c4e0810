"""Random numbers of an item: a function of the seed, the item and the number of the sample, and of nothing else.

So results depend neither on the batch, nor on the number of ranks, nor on restarts.
"""

from __future__ import annotations

import hashlib

import torch

from megaunigame.randomness import derive


def generator_of(seed: int, item: str, sample: int = 0) -> torch.Generator:
    """On the CPU, also for a model on a GPU: generators of other devices draw other numbers."""
    name = int.from_bytes(hashlib.sha256(item.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    return torch.Generator().manual_seed(derive(seed, name, sample))
