"""Torch's attention for language models that get a full mask (B, 1, Q, K), or None for causal attention.

Without a mask, transformers checks the position ids for packed sequences, which makes the host wait for the device in every
forward. An implementation without an entry in its table of masks, like this one, skips the check: a full mask or None
reaches the attention unchanged. A padding mask (B, S) would be lost, so callers must not pass one.
"""

from __future__ import annotations

from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PLAIN = "plain_sdpa"

AttentionInterface.register(PLAIN, sdpa_attention_forward)


def choose_attention(language_model: PreTrainedModel, attention: str) -> None:
    """Set the attention implementation; `attention` is a value of `model.attention`."""
    language_model.set_attn_implementation(PLAIN if attention == "sdpa" else attention)
