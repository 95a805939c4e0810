"""Counts the bytes of weights that ZeRO-3 gathers: the network cost of a pass, which does not depend on its rows."""

from __future__ import annotations

from typing import Any

from deepspeed.runtime.zero import partition_parameters
from torch import Tensor


class GatheredBytes:
    """Running total of one process."""

    def __init__(self) -> None:
        self.total = 0

    def pop(self) -> int:
        """Return the total and reset it."""
        total, self.total = self.total, 0
        return total


_counter = GatheredBytes()
_gather = partition_parameters._dist_allgather_fn


def _counted(input_tensor: Tensor, output_tensor: Tensor, group: Any = None) -> Any:
    _counter.total += output_tensor.nbytes
    return _gather(input_tensor, output_tensor, group)


def count_gathered_bytes() -> GatheredBytes:
    """The counter of this process. From the first call on, every gather of partitioned weights goes through it.

    DeepSpeed does not report it; all its gathers of weights end in this one function.
    """
    partition_parameters._dist_allgather_fn = _counted
    return _counter
