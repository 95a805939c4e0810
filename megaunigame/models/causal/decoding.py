"""Decoding token by token with a key-value cache. The number of calls depends on arguments only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from megaunigame.errors import ModelError
from megaunigame.models.base import Generators
from megaunigame.models.causal import masks
from megaunigame.models.row_noise import uniform

READS_TO_LEAVE_POINT = 8
"""Tokens between two points at which decoding can be left: a bound of seconds, at a cost that nobody sees."""
UNITS = 2.0**40
"""Number of equal parts of a probability of 1 when a code is drawn."""
ROUNDING = 1e-5
"""How far float32 logits of a row may be from those in another batch, relative to the largest: many times what was seen."""
NOT_FINITE = (
    "The model computes numbers that are not finite. float16 overflows in many models: type --dtype bfloat16 (in Python "
    'dtype="bfloat16"), or float32. If that is what it computes in, its weights are damaged.'
)


def with_cache(language_model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """Arguments of a call that reads and fills `cache`, as transformers calls it from 5.24 on; `past_key_values` before."""
    name = "cache" if "cache" in inspect.signature(type(language_model).forward).parameters else "past_key_values"
    return {name: cache, "use_cache": True}


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
        positions: Tensor | None = None,
    ):
        """`attention` (B, P): False at padding. `flash`: the model's attention takes it as it is. `leave_point`: called every
        few tokens, may raise. `opened`: as in `masks.causal`, for the prompt; every later token sees all before it.
        `positions` (B, P): rotary positions of the prompt, from which later ones count up; None: all are counted."""
        self.language_model, self.attention, self.flash, self.opened = language_model, attention, flash, opened
        self.cached = with_cache(language_model, DynamicCache(config=language_model.config))
        self.positions = positions
        self.leave_point, self.reads = leave_point, 0

    def prompt(self, embeds: Tensor) -> Tensor:
        """(B, P, D) -> (B, D)."""
        if self.flash:
            return self._read(embeds, self.attention)
        return self._read(embeds, masks.additive(masks.causal(self.attention, None, self.opened), embeds.dtype))

    def token(self, embed: Tensor) -> Tensor:
        """(B, D): the next input -> (B, D)."""
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(embed), 1)], dim=1)
        self.positions = None if self.positions is None else following(self.positions, 1)[:, -1:]
        mask = self.attention if self.flash else masks.additive(self.attention.unsqueeze(1), embed.dtype)
        return self._read(embed.unsqueeze(1), mask)

    def _read(self, embeds: Tensor, mask: Tensor) -> Tensor:
        self.reads += 1
        if self.reads % READS_TO_LEAVE_POINT == 0:
            self.leave_point()
        given = {} if self.positions is None else {"position_ids": self.positions}
        read = self.language_model(inputs_embeds=embeds, attention_mask=mask, **self.cached, **given)
        return read.last_hidden_state[:, -1]


def following(positions: Tensor, count: int) -> Tensor:
    """(B, P) positions -> (B, P + count), counted up."""
    more = torch.arange(1, count + 1, device=positions.device)
    return torch.cat([positions, positions[:, -1:] + more], dim=1)


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
    alone: Callable[[int, Tensor], Tensor] | None = None,
) -> Tensor:
    """(B, count) codes drawn after embedded prompts (B, P, D). Call it inside `evaluating`.

    With a guidance other than 1, logits are u + guidance * (c - u), and the second half of `prompts` (2 B, P, D) is without
    condition. `embed`: codes (B,) -> (B, D), as the language model reads them. `score`: hidden states (R, D) -> logits (R, V).
    `pick`: guided logits (B, V) -> codes (B,). `perturb`: embedding (B, 1, D) of the last code -> what is added to it before
    it is read. After every `line` codes, `line_end` (D,) is read. `alone(row, codes (1, n))`: the logits (1 or 2, V) after
    these codes, computed for that row by itself; with it, and `pick` a Picker, choices are those of `settle`.
    """
    copies = 1 if guidance == 1 else 2
    hidden = reader.prompt(prompts)
    codes: list[Tensor] = []
    while True:
        scores = score(hidden).float()
        logits = _guided(scores, guidance)
        chosen = pick(logits)
        if alone is not None:
            assert isinstance(pick, Picker)
            before = torch.stack(codes, dim=1) if codes else chosen.new_zeros(len(chosen), 0)
            size = scores.abs().amax(-1).view(copies, -1).amax(0) * (abs(guidance) + abs(1 - guidance))
            by_itself = partial(_guided_alone, alone, before, guidance)
            chosen = settle(pick, chosen, logits, size, by_itself)
        codes.append(chosen)
        if len(codes) == count:
            return torch.stack(codes, dim=1)
        read = embed(codes[-1])
        if perturb is not None:
            read = read + perturb(read.unsqueeze(1)).squeeze(1).to(read.dtype)
        hidden = reader.token(read.repeat(copies, 1))
        if line_end is not None and len(codes) % line == 0:
            hidden = reader.token(line_end.expand(len(hidden), -1))


def _guided(scores: Tensor, guidance: float) -> Tensor:
    """(B, V) or, with guidance, (2 B, V) -> (B, V)."""
    if guidance == 1:
        return scores
    conditional, without = scores.chunk(2)
    return without + guidance * (conditional - without)


def _guided_alone(alone: Callable[[int, Tensor], Tensor], before: Tensor, guidance: float, row: int) -> Tensor:
    """(1, V)."""
    return _guided(alone(row, before[row : row + 1]).float(), guidance)


class Picker:
    """Chooses codes or tokens (B,) from logits (B, V): the likeliest at temperature 0, else drawn, with one random number for
    each row."""

    def __init__(self, temperature: float, generator: Generators | None):
        """`generator` may be None at temperature 0 only."""
        if temperature != 0 and generator is None:
            raise ValueError(f"Temperature {temperature} draws: give a generator.")
        self.temperature, self.generator = temperature, generator
        self._numbers: Tensor | None = None
        """(B, 1): those of the last choice."""
        self._finite: Tensor | None = None
        """() bool: whether all choices were made from finite logits; left on the device."""

    def __call__(self, logits: Tensor) -> Tensor:
        finite = logits.amax(-1).isfinite().all()  # -inf among others is legal: a token that is not to be chosen
        self._finite = finite if self._finite is None else self._finite & finite
        if self.temperature == 0:
            return logits.argmax(-1)
        assert self.generator is not None
        self._numbers = uniform((len(logits), 1), self.generator).to(logits.device)
        return _drawn(*self._places(logits, self._numbers))

    def check_finite(self) -> None:
        """Raise ModelError if a choice had nothing to choose from. Depends on the data and waits for the device: not in
        lockstep."""
        if self._finite is not None and not bool(self._finite):
            raise ModelError(NOT_FINITE)

    def again(self, logits: Tensor, row: int) -> Tensor:
        """(1, V): other logits of one row -> (1,), by the random number that its last choice had."""
        if self._numbers is None:
            return logits.argmax(-1)
        return _drawn(*self._places(logits, self._numbers[row : row + 1]))

    def unsure(self, logits: Tensor, codes: Tensor, error: Tensor) -> Tensor:
        """(B,) bool: whether the last choice, `codes` (B,), could be another one if each logit was off by `error` (B,)."""
        if self._numbers is None:
            best = logits.topk(2).values
            return best[:, 0] - best[:, 1] <= 2 * error
        cumulative, place = self._places(logits, self._numbers)
        own = codes.unsqueeze(1)
        below = torch.where(own > 0, cumulative.gather(1, (own - 1).clamp_min(0)), 0)
        distance = torch.minimum(place - below, cumulative.gather(1, own) - place) / cumulative[:, -1:]
        # Logits (over the temperature) that are off by e move a sum of probabilities by at most e / 2.
        return distance.squeeze(1) <= error / (2 * self.temperature)

    def _places(self, logits: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse distribution function: running sums (B, V), and where in them the random numbers are (B, 1). In integers,
        because a running sum of floats depends on the order of threads on a GPU."""
        cumulative = ((logits / self.temperature).softmax(-1).double() * UNITS).long().cumsum(-1)
        return cumulative, (numbers.double() * cumulative[:, -1:]).long()


def _drawn(cumulative: Tensor, place: Tensor) -> Tensor:
    return torch.searchsorted(cumulative, place, right=True).squeeze(1).clamp_max(cumulative.shape[-1] - 1)


def settle(pick: Picker, chosen: Tensor, logits: Tensor, size: Tensor, alone: Callable[[int], Tensor]) -> Tensor:
    """(B,): `chosen`, and for rows whose choice rounding could change, the choice of the row by itself.

    How matrix products round depends on the other rows of a batch and on the padding. A choice that is within that is made
    again from `alone(row)` (1, V), which must depend on the row alone; so every choice is the one that the row makes by itself.
    `logits` (B, V) float32; `size` (B,): the largest value that was rounded on the way to them.
    """
    settled = chosen.clone()
    for row in pick.unsure(logits, chosen, ROUNDING * size).nonzero().flatten().tolist():
        settled[row : row + 1] = pick.again(alone(row), row)
    return settled


def picker(temperature: float, generator: Generators | None) -> Picker:
    """How a code or a token is chosen."""
    return Picker(temperature, generator)
