"""Decoding token by token with a key-value cache. The number of calls depends on arguments only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from megaunigame.models.causal import masks

READS_TO_LEAVE_POINT = 8
"""Tokens between two points at which decoding can be left: a bound of seconds, at a cost that nobody sees."""
UNITS = 2.0**40
"""Number of equal parts of a probability of 1 when a code is drawn."""


class CachedReader:
    """Feeds a (left padded) sequence to the language model piece by piece and returns the last hidden state."""

    def __init__(
        self,
        language_model: PreTrainedModel,
        attention: Tensor,
        *,
        flash: bool,
        leave_point: Callable[[], None],
        opened: Tensor | None = None,
    ):
        """`attention` (B, P): False at padding. `flash`: the model's attention takes it as it is. `leave_point`: called every
        few tokens, may raise. `opened`: as in `masks.causal`, for the prompt; every later token sees all before it."""
        self.language_model, self.attention, self.flash, self.opened = language_model, attention, flash, opened
        self.cache = DynamicCache(config=language_model.config)
        self.leave_point, self.reads = leave_point, 0

    def prompt(self, embeds: Tensor) -> Tensor:
        """(B, P, D) -> (B, D)."""
        if self.flash:
            return self._read(embeds, self.attention)
        return self._read(embeds, masks.additive(masks.causal(self.attention, None, self.opened), embeds.dtype))

    def token(self, embed: Tensor) -> Tensor:
        """(B, D): the next input -> (B, D)."""
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(embed), 1)], dim=1)
        mask = self.attention if self.flash else masks.additive(self.attention.unsqueeze(1), embed.dtype)
        return self._read(embed.unsqueeze(1), mask)

    def _read(self, embeds: Tensor, mask: Tensor) -> Tensor:
        self.reads += 1
        if self.reads % READS_TO_LEAVE_POINT == 0:
            self.leave_point()
        read = self.language_model(inputs_embeds=embeds, attention_mask=mask, past_key_values=self.cache, use_cache=True)
        return read.last_hidden_state[:, -1]


@torch.no_grad()
def draw_codes(
    reader: CachedReader,
    prompts: Tensor,
    count: int,
    *,
    embed: Callable[[Tensor], Tensor],
    score: Callable[[Tensor], Tensor],
    pick: Callable[[Tensor], Tensor],
    guidance: float,
    perturb: Callable[[Tensor], Tensor] | None = None,
    line: int = 0,
    line_end: Tensor | None = None,
) -> Tensor:
    """(B, count) codes drawn after embedded prompts (B, P, D). Call it inside `evaluating`.

    With a guidance other than 1, logits are u + guidance * (c - u), and the second half of `prompts` (2 B, P, D) is without
    condition. `embed`: codes (B,) -> (B, D), as the language model reads them. `score`: hidden states (R, D) -> logits (R, V).
    `pick`: guided logits (B, V) -> codes (B,). `perturb`: embedding (B, 1, D) of the last code -> what is added to it before
    it is read. After every `line` codes, `line_end` (D,) is read.
    """
    copies = 1 if guidance == 1 else 2
    hidden = reader.prompt(prompts)
    codes: list[Tensor] = []
    while True:
        logits = score(hidden).float()
        if copies == 2:
            conditional, without = logits.chunk(2)
            logits = without + guidance * (conditional - without)
        codes.append(pick(logits))
        if len(codes) == count:
            return torch.stack(codes, dim=1)
        read = embed(codes[-1])
        if perturb is not None:
            read = read + perturb(read.unsqueeze(1)).squeeze(1).to(read.dtype)
        hidden = reader.token(read.repeat(copies, 1))
        if line_end is not None and len(codes) % line == 0:
            hidden = reader.token(line_end.expand(len(hidden), -1))


def picker(temperature: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """How a code is chosen from logits (B, V): the likeliest at temperature 0, else drawn."""

    def greedy(logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    def draw(logits: Tensor) -> Tensor:
        # Inverse distribution function: one uniform number per row, drawn on the generator's device. In integers, because a
        # running sum of floats depends on the order of threads on a GPU.
        cumulative = ((logits / temperature).softmax(-1).double() * UNITS).long().cumsum(-1)
        uniform = torch.rand(len(logits), 1, generator=generator, device=generator.device).to(logits.device)
        place = (uniform.double() * cumulative[:, -1:]).long()
        return torch.searchsorted(cumulative, place, right=True).squeeze(1).clamp_max(logits.shape[-1] - 1)

    return greedy if temperature == 0 else draw
