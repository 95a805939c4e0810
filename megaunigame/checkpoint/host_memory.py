"""Copies of tensors in host memory: what a save writes while the learner goes on."""

from __future__ import annotations

import logging
import re

import torch
from torch import Tensor

NO_MEMORY = re.compile("out of memory|allocate memory|not enough memory", re.IGNORECASE)
"""In the RuntimeErrors of torch's allocators: on a device, pinned on the host, on the host."""
log = logging.getLogger(__name__)


def is_of_an_allocator(error: MemoryError | RuntimeError) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY.search(str(error)) is not None


def host_copies(tensors: list[Tensor]) -> list[Tensor]:
    """Copies in host memory, made together: from a GPU without a wait for each, as far as pinned memory is given."""
    copies, pins = [], True
    for tensor in tensors:
        room = _pinned(tensor) if tensor.is_cuda and pins else None
        if room is None:
            pins = pins and not tensor.is_cuda  # not asked for again: each refusal may take seconds
            room = torch.empty(tensor.shape, dtype=tensor.dtype)
        copies.append(room.copy_(tensor, non_blocking=True))
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies


def _pinned(tensor: Tensor) -> Tensor | None:
    """None: there is no more pinned memory, which has limits of the driver and of the system."""
    try:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    except (MemoryError, RuntimeError) as error:
        if not is_of_an_allocator(error):
            raise
        log.warning(
            "No pinned memory for %s bytes of a save (%s). Ordinary memory is used: the training pauses longer.",
            f"{tensor.nbytes:,}",
            str(error).splitlines()[0] if str(error) else type(error).__name__,
        )
        return None
