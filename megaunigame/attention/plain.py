"""Torch's attention for language models that get a full mask (B, 1, Q, K), or None for causal attention.

Without a mask, transformers checks the position ids for packed sequences, which makes the host wait for the device in every
forward. An implementation without an entry in its table of masks, like this one, skips the check: a full mask or None
reaches the attention unchanged. A padding mask (B, S) would be lost, so callers must not pass one. Rows may be one after
another (`packs`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from megaunigame.attention.packs import Pack

PLAIN = "plain_sdpa"


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    pack: Pack | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function; `pack`: queries, keys and values are those of a pack."""
    if pack is not None:
        return pack.attend(sdpa_attention_forward, module, query, key, value, dropout, scaling)
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options)


AttentionInterface.register(PLAIN, _attend)


def choose_attention(language_model: PreTrainedModel, attention: str) -> None:
    """Set the attention implementation; `attention` is a value of `model.attention`."""
    language_model.set_attn_implementation(PLAIN if attention == "sdpa" else attention)
