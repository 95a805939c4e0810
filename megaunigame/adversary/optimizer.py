"""The adversary's own AdamW: the same parameters and the same update on every rank, without the training engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from megaunigame.parallel.ranks import Ranks


class ReplicatedAdamW:
    """AdamW over parameters that every rank holds whole; gradients are summed over the ranks before each update."""

    def __init__(self, parameters: Sequence[nn.Parameter], *, clip: float, weight_decay: float):
        self.parameters = list(parameters)
        self.clip = clip
        self.optimizer = torch.optim.AdamW([{"params": self.parameters}], lr=0.0, weight_decay=weight_decay)

    def step(self, gradients: Sequence[Tensor], lr: float, data_ranks: Ranks) -> float:
        """Collective: update with the sum of all ranks' gradients, clipped; returns its norm before clipping.

        Each rank passes the gradient of its part of one global loss. If the norm is not finite, no rank updates: the next
        attack starts from the same adversary.
        """
        flat = data_ranks.all_reduce_sum(torch.cat([g.flatten() for g in gradients]))
        norm = float(flat.norm())  # not finite where any gradient is not
        if math.isfinite(norm):
            flat *= min(1.0, self.clip / (norm + 1e-6))
            for parameter, part in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
                parameter.grad = part.view_as(parameter)
            self.optimizer.param_groups[0]["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad()  # also of what a backward of the learner has accumulated
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step counts by `<parameter number>.<name>`; empty before the first update."""
        state = self.optimizer.state_dict()["state"]
        return {f"{number}.{name}": value for number, entry in state.items() for name, value in entry.items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned. Settings stay those of this run."""
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
