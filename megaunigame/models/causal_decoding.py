"""Token by token with a key-value cache. The number of calls depends on arguments only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from megaunigame.models import masks
from megaunigame.passes import PassInputs

if TYPE_CHECKING:
    from megaunigame.models.causal import CausalModel


class CachedReader:
    """Feeds a (left padded) sequence to the language model piece by piece and returns the last hidden state."""

    def __init__(self, model: CausalModel, attention: Tensor):
        self.language_model = model.language_model
        self.flash = model._flash
        self.attention = attention
        self.cache = DynamicCache(config=model.language_model.config)

    def prompt(self, embeds: Tensor) -> Tensor:
        """(B, P, D) -> (B, D)."""
        mask = self.attention if self.flash else masks.additive(masks.causal(self.attention, None), embeds.dtype)
        return self._read(embeds, mask)

    def token(self, embed: Tensor) -> Tensor:
        """(B, D): the next input -> (B, D)."""
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(embed), 1)], dim=1)
        mask = self.attention if self.flash else masks.additive(self.attention.unsqueeze(1), embed.dtype)
        return self._read(embed.unsqueeze(1), mask)

    def _read(self, embeds: Tensor, mask: Tensor) -> Tensor:
        read = self.language_model(inputs_embeds=embeds, attention_mask=mask, past_key_values=self.cache, use_cache=True)
        return read.last_hidden_state[:, -1]


@torch.no_grad()
def answer(model: CausalModel, inputs: PassInputs, *, max_new_tokens: int) -> Tensor:
    """(B, max_new_tokens) greedy tokens; a row that has ended repeats the end token."""
    end = model.processor.eos_id
    with evaluating(model):
        reader = CachedReader(model, inputs.attention)
        hidden = reader.prompt(model.embed(inputs))
        ended = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        tokens: list[Tensor] = []
        for _ in range(max_new_tokens):
            if tokens:
                hidden = reader.token(model.language_model.embed_tokens(tokens[-1]))
            tokens.append(model.lm_head(hidden).argmax(-1).masked_fill(ended, end))
            ended = ended | (tokens[-1] == end)
    return torch.stack(tokens, dim=1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside: dropout is off, and gradient checkpointing (which would empty the cache) too."""
    # Module by module: the caller may have switched off single ones, such as the dropouts of an opponent.
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
