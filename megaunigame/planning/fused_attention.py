"""Attention as a GPU computes it, on tensors without data: no (S, S) scores in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

_plain = F.scaled_dot_product_attention


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Inside, `scaled_dot_product_attention` of meta tensors is one of torch's fused kernels.

    On the meta device torch itself uses plain products, whose (S, S) scores no GPU run would hold: flash attention has none,
    and with a mask the memory-efficient kernel has none either. Grouped keys and values are repeated if there is a mask, as
    transformers does. (A TorchFunctionMode is not enough: it does not reach the recomputation of gradient checkpointing.)
    """
    with patch.object(F, "scaled_dot_product_attention", _on_meta):
        yield


def _on_meta(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """(B, H, Q, d), keys and values (B, H', K, d) -> (B, H, Q, d)."""
    if query.device.type != "meta":
        return _plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa and key.shape[1] != query.shape[1]:
        heads = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
    if attn_mask is None and query.dtype != torch.float32:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale
    )[0]
