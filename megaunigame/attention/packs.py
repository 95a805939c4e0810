"""Rows of a pass read one after another, in one sequence without padding: a pack.

    rows  (B, S, ...)   a a a . .        pack  (1, T, ...)   a a a b b b b c
                        b b b b .
                        c . . . .        T: positions that count, of all rows

A row attends to itself alone: attention is computed row by row, or by a kernel that is told where rows begin. No (T, T) mask
exists. Where rows are in the pack is known on the host, so nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from megaunigame.parallel.accelerator import capability

LARGEST_HEAD = 256
"""Width of a head up to which flash attention has kernels."""
OLDEST_GPU = (8, 0)
"""Compute capability that it needs (Ampere)."""
Attention = Callable[..., tuple[Tensor, Tensor | None]]
"""A function of transformers' table."""


class Pack:
    """Where the rows of a pass are in its pack, and what the positions of a row see."""

    def __init__(self, attention: Tensor, lengths: Sequence[int]):
        """`attention` (B, S) bool: the positions that count. `lengths`: how many these are in each row."""
        self.attention, self.lengths = attention, list(lengths)
        self.places = attention.flatten().nonzero_static(size=sum(self.lengths)).squeeze(1)
        """(T,) int64: index of each position of the pack among all B * S."""
        self.masks: list[Tensor] | None = None
        """Of each row: (1, 1, its length, its length), additive. None: every row is causal."""

    def packed(self, values: Tensor) -> Tensor:
        """(B, S, ...) -> (1, T, ...)."""
        return values.flatten(0, 1).index_select(0, self.places).unsqueeze(0)

    def rows(self, values: Tensor) -> Tensor:
        """(1, T, ...) -> (B, S, ...), zeros where nothing counts."""
        size = self.attention.shape
        empty = values.new_zeros(size.numel(), *values.shape[2:])
        return empty.index_copy(0, self.places, values[0]).unflatten(0, size)

    def row_places(self) -> list[Tensor]:
        """For each row the positions (its length,) that count, of its S."""
        width = self.attention.shape[1]
        return [places - row * width for row, places in enumerate(self.places.split(self.lengths))]

    @cached_property
    def ends(self) -> Tensor:
        """(B + 1,) int32: where rows begin in the pack, and the end of the last."""
        ends = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32)
        return ends.to(self.attention.device, non_blocking=True)

    @property
    def flash_options(self) -> dict[str, Any]:
        """What transformers' flash attention wants to know of a pack."""
        longest = max(self.lengths)
        ends = {"cu_seq_lens_q": self.ends, "cu_seq_lens_k": self.ends}
        return {**ends, "max_length_q": longest, "max_length_k": longest}

    def attend(
        self,
        function: Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        dropout: float,
        scaling: float | None,
    ) -> tuple[Tensor, None]:
        """(1, H, T, d), keys and values (1, H or fewer, T, d) -> (1, T, H, d). `function`: attention of one row."""
        if self.masks is None and has_kernel(query, value, dropout):
            return self._at_once(query, key, value, scaling), None
        parts, each = [], zip(*(x.split(self.lengths, dim=2) for x in (query, key, value)), strict=True)
        for number, (q, k, v) in enumerate(each):
            if self.lengths[number]:
                mask = None if self.masks is None else self.masks[number]
                parts.append(function(module, q, k, v, mask, dropout=dropout, scaling=scaling)[0])
        return torch.cat(parts, dim=1), None

    def _at_once(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Causal attention of all rows by one kernel."""
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        longest = max(self.lengths)
        causal, grouped = (-1, 0), q.shape[1] != k.shape[1]
        ends = (self.ends, self.ends, longest, longest)
        attended = varlen_attn(q, k, v, *ends, scale=scaling, window_size=causal, enable_gqa=grouped)
        assert isinstance(attended, Tensor)
        return attended.unsqueeze(0)


def has_kernel(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether torch's flash attention for rows of different lengths takes this: half precision, no dropout, a GPU that is new
    enough."""
    if not query.is_cuda or capability(query.device) < OLDEST_GPU:
        return False
    half = query.dtype in (torch.bfloat16, torch.float16)
    width = query.shape[-1]
    return half and dropout == 0 and width == value.shape[-1] <= LARGEST_HEAD and width % 8 == 0
