"""Counts the tokens that a language model reads in passes of the trainer and of players."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megaunigame.models.base import UnifiedModel
from megaunigame.step.inputs import PassInputs
from megaunigame.step.requests import GENERATE


class TokenCounter:
    """Tokens of the passes of one process. All tokens are known from shapes; useful ones are summed on the device, so that
    no pass waits for a number. Tokens generated one by one by `sample` and `answer` do not count.
    """

    def __init__(self, model: UnifiedModel, after_prompt: int, device: torch.device):
        """`after_prompt`: tokens of a generate row that follow its prompt."""
        self.after_prompt = after_prompt
        self._computed = 0
        self._useful = torch.zeros((), dtype=torch.int64, device=device)
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def pop(self) -> Tensor:
        """(2,) float64 on the device: tokens computed, with and without padding and dummy rows. Resets both."""
        counts = torch.stack([torch.full_like(self._useful, self._computed), self._useful]).double()
        self._computed, self._useful = 0, torch.zeros_like(self._useful)
        return counts

    @torch.no_grad()
    def _count(self, module: UnifiedModel, args: tuple, kwargs: dict[str, Any]) -> None:
        inputs: PassInputs = args[0]
        rows, length = inputs.tokens.shape
        more = self.after_prompt if inputs.pass_name == GENERATE else 0
        packed = inputs.pass_name in module.packed_passes and inputs.lengths
        self._computed += sum(inputs.lengths) + rows * more if packed else rows * (length + more)
        self._useful = self._useful + ((inputs.attention.sum(1) + more) * (inputs.counts > 0)).sum()
