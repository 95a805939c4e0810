"""Drawing a picture in rounds: each reveals some of its tokens, drawn by the diffusion head, to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from megaunigame.models.base import Generators
from megaunigame.models.causal import masks
from megaunigame.models.causal.decoding import with_cache
from megaunigame.models.harmon import diffusion, masking
from megaunigame.models.harmon.configuration import LINEAR, HarmonConfig
from megaunigame.models.harmon.mar import Grid, MaskedAutoencoder, taken
from megaunigame.models.row_noise import normal, uniform


class Networks(Protocol):
    """What a Harmon gives to the drawing of a picture."""

    config: HarmonConfig
    mar: MaskedAutoencoder
    leave_point: Callable[[], None]

    @property
    def picture_grid(self) -> Grid: ...

    def encode(self, latents: Tensor, seen: Tensor, grid: Grid) -> tuple[Tensor, Tensor]: ...

    def complete(self, encoded: Tensor, states: Tensor, seen: Tensor, grid: Grid) -> Tensor: ...


class PictureReader:
    """Reads requests once, and after them a picture of any number of tokens, again in every round."""

    def __init__(self, language_model: PreTrainedModel, embeds: Tensor, attention: Tensor, *, flash: bool):
        """`embeds` (R, S, D), padded on either side, `attention` (R, S). Call it inside `evaluating`."""
        self.language_model, self.attention, self.flash = language_model, attention, flash
        self.cache = DynamicCache(config=language_model.config)
        mask = attention if flash else masks.additive(masks.causal(attention, None), embeds.dtype)
        self._read(embeds, mask, (attention.long().cumsum(1) - 1).clamp_min(0))

    def __call__(self, read: Tensor) -> Tensor:
        """Tokens of pictures (R, L, D) -> their states (R, L, D)."""
        length = read.shape[1]
        attention = F.pad(self.attention, (0, length), value=True)
        mask = attention
        if not self.flash:
            mask = masks.additive(masks.causal(attention, None)[:, -length:], read.dtype)
        states = self._read(read, mask, (attention.long().cumsum(1) - 1)[:, -length:])
        self.cache.crop(-length)  # transformers takes what to remove
        return states

    def _read(self, embeds: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        cached = with_cache(self.language_model, self.cache)
        read = self.language_model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, **cached)
        return read.last_hidden_state


class Noise(Protocol):
    """Random numbers of a picture that is drawn."""

    def start(self, tokens: int) -> Tensor:
        """(B, tokens, C): where the diffusion of the tokens of a round begins."""
        ...

    def steps(self, tokens: int) -> Iterator[Tensor]:
        """(B, tokens, C) for each of its steps."""
        ...


class RowNoise:
    """From one generator, or from one for each row."""

    def __init__(self, generator: Generators, rows: int, channels: int, device: torch.device):
        self.generator, self.rows, self.channels, self.device = generator, rows, channels, device

    def orders(self, tokens: int) -> Tensor:
        """(B, N): the places of a picture in a random order; the last are drawn first."""
        return uniform((self.rows, tokens), self.generator).to(self.device).argsort(1)

    def start(self, tokens: int) -> Tensor:
        return normal((self.rows, tokens, self.channels), self.generator).to(self.device)

    def steps(self, tokens: int) -> Iterator[Tensor]:
        while True:
            yield self.start(tokens)


def draw(
    model: Networks,
    reader: PictureReader,
    orders: Tensor,
    noise: Noise,
    guidance: float,
    temperature: float,
    perturb: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Latents (B, N, C), drawn in the reverse of `orders` (B, N). With guidance other than 1, `reader` has the requests without
    condition in its second half. Every round makes one call of the language model, whatever it reveals."""
    config, (rows, count) = model.config, orders.shape
    copies = 1 if guidance == 1 else 2
    tokens = torch.zeros(rows, count, config.channels, device=orders.device)
    left = count
    for number in range(config.drawing.rounds):
        model.leave_point()
        condition = conditions(model, reader, tokens, orders[:, left:].sort(dim=1).values, copies, perturb)
        after = masking.still_masked(number, config.drawing.rounds, left, count)
        scale = guidance
        if config.drawing.guidance_schedule == LINEAR:
            scale = 1 + (guidance - 1) * (count - max(after, 1)) / count
        revealed = orders[:, after:left].sort(dim=1).values
        predict = Guided(model, taken(condition, revealed.repeat(copies, 1)), copies, scale)
        drawn = diffusion.denoise(
            predict, noise.start(left - after), noise.steps(left - after), config.drawing.noise_steps, temperature
        )
        tokens = tokens.scatter(1, revealed.unsqueeze(-1).expand(-1, -1, config.channels), drawn)
        left = after
    return tokens


def conditions(
    model: Networks,
    reader: PictureReader,
    tokens: Tensor,
    seen: Tensor,
    copies: int,
    perturb: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Tokens (B, N, C), of which `seen` (B, V) are visible -> conditions (copies * B, N, E) of the diffusion head."""
    encoded, read = (part.repeat(copies, 1, 1) for part in model.encode(taken(tokens, seen), seen, model.picture_grid))
    states = reader(read)
    if perturb is not None:
        of_buffers = slice(-model.config.buffers, None)
        states[: len(tokens), of_buffers] += perturb(states[: len(tokens), of_buffers]).to(states.dtype)
    return model.complete(encoded, states, seen.repeat(copies, 1), model.picture_grid)


class Guided:
    """Prediction of the diffusion head for tokens (B, k, C): noise u + scale (c - u), v that of the condition."""

    def __init__(self, model: Networks, condition: Tensor, copies: int, scale: float):
        """`condition` (copies * B, k, E); with 2 copies the second half is without condition."""
        self.model, self.condition, self.copies, self.scale = model, condition, copies, scale

    def __call__(self, x: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        noise, v = self.model.mar.diffloss(x.repeat(self.copies, 1, 1), levels.repeat(self.copies, 1), self.condition)
        if self.copies == 1:
            return noise, v
        conditional, without = noise.chunk(2)
        return without + self.scale * (conditional - without), v.chunk(2)[0]
