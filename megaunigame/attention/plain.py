"""Torch's attention for language models that are given either a whole mask, (B, 1, Q, K), or none and attend causally.

transformers finds out from the position ids whether a sequence without a mask is packed of several, and for that the host
waits for the device in every forward. It leaves alone what has no entry in its table of masks, as here: a whole mask, or
None, reaches the attention as it is. A padding mask (B, S) would be lost, so nobody may give one.
"""

from __future__ import annotations

from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PLAIN = "plain_sdpa"

AttentionInterface.register(PLAIN, sdpa_attention_forward)


def choose_attention(language_model: PreTrainedModel, attention: str) -> None:
    """Let `language_model` attend by `attention`, a value of `model.attention`."""
    language_model.set_attn_implementation(PLAIN if attention == "sdpa" else attention)
