"""Pictures code by code, line by line. The number of calls depends on arguments only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megaunigame.models.causal_decoding import draw_codes, evaluating
from megaunigame.models.token_rows import left_padded
from megaunigame.passes import PassInputs

if TYPE_CHECKING:
    from megaunigame.models.emu3.model import Emu3


@torch.no_grad()
def sample_codes(
    model: Emu3,
    inputs: PassInputs,
    *,
    guidance: float,
    pick: Callable[[Tensor], Tensor],
    disturb: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """(B, N) codes. Only codes are drawn; line ends are put where they belong. Guidance 1 runs the conditional rows alone."""
    with evaluating(model):
        embed_tokens, device = model.language_model.embed_tokens, inputs.tokens.device
        embeds, attention = model.embed(inputs), inputs.attention
        if guidance != 1:
            empty = torch.tensor([model.processor.unconditional_tokens()], device=device)
            read = left_padded(torch.ones_like(empty, dtype=torch.bool), embeds.shape[1])
            without = left_padded(embed_tokens(empty), embeds.shape[1])
            embeds = torch.cat([embeds, without.expand(len(embeds), -1, -1)])
            attention = torch.cat([attention, read.expand(len(attention), -1)])
        return draw_codes(
            model,
            embeds,
            attention,
            model.rows.count,
            embed=model.embed_codes,
            score=model.code_logits,
            pick=pick,
            guidance=guidance,
            disturb=disturb,
            line=model.rows.width,
            line_end=embed_tokens(torch.tensor(model.rows.line_end, device=device)),
        )
