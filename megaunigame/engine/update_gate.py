"""Lets an update be refused once the norm of its gradient is known, and before a weight changes.

DeepSpeed computes the norm at the beginning of its optimizer's step, and makes no update when that norm is not finite: its way
out for overflows of float16, which clears the gradients and counts the step. The gate stands right after the norm, and gives a
norm that is not finite in the place of one that was refused. So the norm is computed once, and a refused step leaves the
engine as any other does: one more global step, no micro-step begun, no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.utils import combine_grad_norm_groups
from torch import Tensor

from megaunigame.parallel.ranks import Ranks

Accept = Callable[[float], bool]
"""From the norm of the gradient (infinity when it is not finite) to whether to update; the same call on every rank."""


class UpdateGate:
    """Stands in the step of DeepSpeed's optimizer of stage 2 or 3."""

    def __init__(self, optimizer: Any, stage: int, world: Ranks):
        self.optimizer, self.stage, self.world = optimizer, stage, world
        self.norm = 0.0
        """Of the last gradient, before clipping, over all trained parameters of all ranks."""
        self.accepted = True
        """Whether the last update was made."""
        self._accept: Accept = math.isfinite
        optimizer._update_scale = lambda has_overflow: None  # the scale is 1; it would report a refused spike as an overflow
        if stage == 3:
            self._norms_of_groups = optimizer._get_norm_groups
            optimizer._get_norm_groups = self._judged_groups
        else:
            self._norm_of_all = optimizer.scaled_global_norm
            optimizer.scaled_global_norm = self._judged_norm
            optimizer.check_grad_overflow = False  # it would read every gradient once more, before the norm

    @contextmanager
    def asking(self, accept: Accept) -> Iterator[None]:
        """The engine's step inside asks `accept`; afterwards no gradient of a refused step is left."""
        self._accept, self.accepted = accept, False
        try:
            yield
        finally:
            if self.stage == 2:
                self.optimizer.check_grad_overflow = False
        if not self.accepted:
            self._forget()

    def _judged_groups(self) -> list[Tensor]:
        """Stage 3: norms of the groups; none of them finite when the update is refused."""
        norms = self._norms_of_groups()
        return norms if self._judge(combine_grad_norm_groups(norms)) else [torch.full_like(norm, math.inf) for norm in norms]

    def _judged_norm(self) -> Tensor:
        """Stage 2: norm of all; not finite when the update is refused."""
        norm = self._norm_of_all()
        if self._judge(norm):
            return norm
        self.optimizer.check_grad_overflow = True  # else it updates in bfloat16 at any norm
        return torch.full_like(norm, math.inf)

    def _judge(self, norm: Tensor) -> bool:
        # The largest of all ranks: they must agree, even if their sums differed in the last bit.
        value = norm.detach().float().reshape(1).to(self.world.device)
        value = torch.where(torch.isfinite(value) & (value >= 0), value, math.inf)  # DeepSpeed's sign for not finite is -1
        self.norm = float(self.world.all_reduce_max(value))
        self.accepted = self._accept(self.norm) and math.isfinite(self.norm)
        return self.accepted

    def _forget(self) -> None:
        """What an update clears or overwrites, and a refused one does not."""
        optimizer = self.optimizer
        masters = optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups
        for master in masters:  # with an optimizer on the host they are kept, and a weight without a gradient would get them
            if master.grad is not None:
                master.grad.zero_()
        if self.stage == 3 and optimizer.persistent_parameters:
            # The step has partitioned all weights; the small ones are whole between two steps.
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
