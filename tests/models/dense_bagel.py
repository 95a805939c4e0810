"""A row of BAGEL as one dense sequence in the official order: explicit mask and positions, both sets of weights everywhere.

Nothing here is imported from the model's own spans, layouts or layers; only its weights are used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megaunigame.models.bagel.autoencoder import patched
from megaunigame.models.bagel.tables import table_rows


@dataclass
class Text:
    """`<|im_start|>` words `<|im_end|>`."""

    words: str


@dataclass
class Seen:
    """A picture as the vision tower sees it: (3, H, W), normalized."""

    pixels: Tensor


@dataclass
class Latents:
    """A picture as clean latents (C, h, w)."""

    clean: Tensor


@dataclass
class Noised:
    """A picture to draw: latents (C, h, w), their noise and time."""

    clean: Tensor
    noise: Tensor
    t: float


@dataclass
class Lost:
    """A picture that was dropped as a condition."""


def dense(model, parts):
    """Of every noised picture: hidden states (N, D) and squared errors (N, c) of the velocity."""
    names, patch = model.processor.format, model.config.latent_patch_size
    inputs, latent, places, blocks, noised = [], [], [], [], []
    place, block = 0, 0

    def tokens(ids):
        return model.model.embed_tokens(torch.tensor([ids]))[0]

    def latent_tokens(mixed, t):
        table = table_rows(mixed.shape[1] // patch, mixed.shape[2] // patch, model.config.width, mixed.device)
        return model.vae2llm(patched(mixed[None], patch)[0]) + model.time_embedder(torch.tensor([[t]]))[0] + table

    for part in parts:
        if isinstance(part, Lost):
            place += 1
            continue
        if isinstance(part, Text):
            ids = [names.bos, *names.plain.encode(part.words).tokens, names.eos]
            inputs.append(tokens(ids))
            places += range(place, place + len(ids))
            blocks += [0] * len(ids)
            latent += [False] * len(ids)
            noised += [False] * len(ids)
            place += len(ids)
            continue
        if isinstance(part, Seen):
            inside = model.visual_tokens(part.pixels[None, None])[0, 0]
        elif isinstance(part, Latents):
            inside = latent_tokens(part.clean, 0.0)
        else:
            inside = latent_tokens((1 - part.t) * part.clean + part.t * part.noise, part.t)
        count = len(inside) + 2
        inputs += [tokens([names.begin]), inside, tokens([names.end])]
        block += 1
        places += [place] * count
        blocks += [block] * count
        latent += [False, *[not isinstance(part, Seen)] * len(inside), False]
        noised += [isinstance(part, Noised)] * count
        place += not isinstance(part, Noised)
    whole, of_block, hidden_ones = torch.cat(inputs), torch.tensor(blocks), torch.tensor(noised)
    order, together = torch.arange(len(whole)), (of_block[:, None] == of_block) & (of_block > 0)
    mask = ((order <= order[:, None]) | together) & ~(hidden_ones & ~together)
    states = read(model.model, whole, torch.tensor(latent), mask, torch.tensor(places))
    drawn = states[hidden_ones & torch.tensor(latent)].split([patched(p.clean[None], patch).shape[1] for p in noises(parts)])
    targets = [patched((p.noise - p.clean)[None], patch)[0] for p in noises(parts)]
    return [(hidden, (model.llm2vae(hidden) - v).square()) for hidden, v in zip(drawn, targets, strict=True)]


def noises(parts):
    return [part for part in parts if isinstance(part, Noised)]


def read(decoder, states, latent, mask, places):
    """(L, D) inputs -> (L, D) after the final norm. `latent` (L,): which go through the second set of weights."""
    config = decoder.config
    size, heads = config.hidden_size // config.num_attention_heads, config.num_attention_heads
    angles = places[:, None] * config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    cos, sin = (torch.cat([angles, angles], 1).cos()[:, None], torch.cat([angles, angles], 1).sin()[:, None])

    def by_kind(owner, name, values):
        pick = latent.view(-1, *[1] * (values.dim() - 1))
        return torch.where(pick, getattr(owner, f"{name}_moe_gen")(values), getattr(owner, name)(values))

    def turned(values):
        first, second = values.chunk(2, -1)
        return values * cos + torch.cat([-second, first], -1) * sin

    for layer in decoder.layers:
        attention, normed = layer.self_attn, by_kind(layer, "input_layernorm", states)
        q, k, v = (by_kind(attention, f"{letter}_proj", normed).unflatten(1, (-1, size)) for letter in "qkv")
        q, k = turned(by_kind(attention, "q_norm", q)), turned(by_kind(attention, "k_norm", k))
        k, v = (each.repeat_interleave(heads // each.shape[1], 1) for each in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        states = states + by_kind(attention, "o_proj", torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
        states = states + by_kind(layer, "mlp", by_kind(layer, "post_attention_layernorm", states))
    return by_kind(decoder, "norm", states)
