"""Attention masks and positions of padded sequences and of sequences with independent segments."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.attention.packs import Pack


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, Q, K) bool -> (B, 1, Q, K) float: 0 where attention is allowed, the least finite number elsewhere.

    Additive floats mean the same to every attention implementation; eager attention silently *adds* a boolean mask.
    """
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min).unsqueeze(1)


def causal(attention: Tensor, segments: Tensor | None, opened: Tensor | None = None) -> Tensor:
    """(B, S) padding mask and optional (B, S) segments -> (B, S, S) bool: whether position q attends to position k.

    Segment 0 is the prefix that all segments see; a segment sees the prefix and, causally, itself. `opened` (B, S or 1, S)
    bool: pairs (q, k) that also see each other where k comes after q. Every position sees itself, padding included, so that no
    softmax is empty.
    """
    size = attention.shape[1]
    order = torch.arange(size, device=attention.device)
    allowed = order[None, :] <= order[:, None]
    if opened is not None:
        allowed = allowed | opened
    allowed = allowed & attention[:, None, :]
    if segments is not None:
        key = segments[:, None, :]
        allowed = allowed & ((key == 0) | (key == segments[:, :, None]))
    return allowed | torch.eye(size, dtype=torch.bool, device=attention.device)


def of_rows(pack: Pack, segments: Tensor | None, opened: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    """For each row of a pack its mask (1, 1, its length, its length), additive; `segments`, `opened` as in `causal`."""
    masks = []
    for row, places in enumerate(pack.row_places()):
        own = None if segments is None else segments[row, places].unsqueeze(0)
        more = None
        if opened is not None:
            pairs = opened[row] if opened.shape[1] == 1 else opened[row].index_select(0, places)
            more = pairs.index_select(1, places).unsqueeze(0)
        masks.append(additive(causal(torch.ones_like(places, dtype=torch.bool).unsqueeze(0), own, more), dtype))
    return masks


def lengthened(opened: Tensor, more: int) -> Tensor:
    """`opened` of `causal`, (B, S or 1, S), for rows with `more` positions at their end, which are causal."""
    return F.pad(opened, (0, more, 0, more if opened.shape[1] > 1 else 0))


def segment_positions(attention: Tensor, segments: Tensor) -> Tensor:
    """(B, S) positions that restart after the prefix for every segment, as if it were the only segment."""
    index = attention.long().cumsum(1) - 1
    previous = torch.cat([segments[:, :1], segments[:, :-1]], dim=1)
    start = torch.where(segments != previous, index, 0).cummax(1).values
    prefix = (attention & (segments == 0)).sum(1, keepdim=True)
    return torch.where(segments > 0, index - start + prefix, index).clamp_min(0)
