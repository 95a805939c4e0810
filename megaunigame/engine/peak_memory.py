"""Peak memory of a step."""

from __future__ import annotations

import resource
import sys

import torch

RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes per unit of ru_maxrss."""


def forget_peak(device: torch.device) -> None:
    """Begin a new measurement; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA the most that tensors took since `forget_peak`; on a CPU the largest resident set of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
