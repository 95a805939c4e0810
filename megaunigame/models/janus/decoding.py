"""Pictures code by code, with a key-value cache. The number of calls depends on arguments only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megaunigame.models.causal_decoding import draw_codes, evaluating
from megaunigame.passes import PassInputs

if TYPE_CHECKING:
    from megaunigame.models.janus.model import Janus


@torch.no_grad()
def sample_codes(
    model: Janus,
    inputs: PassInputs,
    *,
    guidance: float,
    pick: Callable[[Tensor], Tensor],
    disturb: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """(B, N) codes. Guidance 1 runs the conditional rows alone."""
    with evaluating(model):
        embeds, attention = model.embed(inputs), inputs.attention
        if guidance != 1:
            empty = unconditional(inputs.tokens, attention, model.processor.pad_id)
            embeds = torch.cat([embeds, model.language_model.embed_tokens(empty)])
            attention = torch.cat([attention, attention])
        return draw_codes(
            model,
            embeds,
            attention,
            model.codes_per_image,
            embed=model.embed_codes,
            score=model.code_logits,
            pick=pick,
            guidance=guidance,
            disturb=disturb,
        )


def unconditional(tokens: Tensor, attention: Tensor, pad: int) -> Tensor:
    """(B, P): the prompts with pad ids between their first and last token, source pictures included.

    These pads are read like any other token; only the padding in front of the prompt stays hidden.
    """
    first = attention & (attention.long().cumsum(1) == 1)
    inner = attention & ~first
    inner[:, -1] = False
    return tokens.masked_fill(inner, pad)
