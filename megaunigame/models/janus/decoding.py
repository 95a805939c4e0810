"""Pictures code by code, with a key-value cache. The number of calls depends on arguments only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megaunigame.models.causal_decoding import CachedReader, evaluating
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
    """(B, N) codes. Logits are u + guidance * (c - u); guidance 1 runs the conditional rows alone.

    `disturb`: from the embedding (B, 1, D) of the last code to what is added to it before it is read.
    """
    guided = guidance != 1
    with evaluating(model):
        embeds, attention = model.embed(inputs), inputs.attention
        if guided:
            empty = unconditional(inputs.tokens, attention, model.processor.pad_id)
            embeds = torch.cat([embeds, model.language_model.embed_tokens(empty)])
            attention = torch.cat([attention, attention])
        reader = CachedReader(model, attention)
        hidden = reader.prompt(embeds)
        codes: list[Tensor] = []
        for _ in range(model.codes_per_image):
            if codes:
                embed = model.embed_codes(codes[-1])
                if disturb is not None:
                    embed = embed + disturb(embed.unsqueeze(1)).squeeze(1).to(embed.dtype)
                hidden = reader.token(torch.cat([embed, embed]) if guided else embed)
            logits = model.model.generation_head(hidden).float()
            if guided:
                conditional, without = logits.chunk(2)
                logits = without + guidance * (conditional - without)
            codes.append(pick(logits))
    return torch.stack(codes, dim=1)


def unconditional(tokens: Tensor, attention: Tensor, pad: int) -> Tensor:
    """(B, P): the prompts with pad ids between their first and last token, source pictures included.

    These pads are read like any other token; only the padding in front of the prompt stays hidden.
    """
    first = attention & (attention.long().cumsum(1) == 1)
    inner = attention & ~first
    inner[:, -1] = False
    return tokens.masked_fill(inner, pad)


def picker(temperature: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """How a code is chosen from logits (B, V): the likeliest at temperature 0, else drawn."""

    def greedy(logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    def draw(logits: Tensor) -> Tensor:
        # Inverse distribution function: one uniform number per row, whatever device the generator lives on.
        cumulative = (logits / temperature).softmax(-1).cumsum(-1)
        uniform = torch.rand(len(logits), 1, generator=generator, device=generator.device).to(logits.device)
        return (
            torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1).clamp_max(logits.shape[-1] - 1)
        )

    return greedy if temperature == 0 else draw
