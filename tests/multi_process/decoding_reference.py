"""The pictures of an attack, decoded without the families' `decode`; codes that are tokens are tested alone.

Of diffusion families: their networks once, at one noise level, from the hidden states with and without the perturbation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megaunigame.models.bagel import Bagel, flow
from megaunigame.models.bagel.autoencoder import unpatched
from megaunigame.models.base import UnifiedModel
from megaunigame.models.causal.token_pictures import TokenPictures
from megaunigame.models.diffusion.latent_pictures import LatentPictures
from megaunigame.models.harmon import Harmon
from megaunigame.models.harmon.diffusion import kept_shares
from megaunigame.models.janus import Janus


@contextlib.contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """The learner does not learn to draw from what the adversary draws."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def decoded(model: UnifiedModel, tokens: Tensor, delta: Tensor, target: Tensor, *, anchored: bool) -> Tensor:
    """(B, N, D) hidden states and their perturbation, and what the model makes of the target -> (B, 3, H, W), not clamped."""
    with resting(model):
        if isinstance(model, TokenPictures):
            return model.decode(tokens, delta, target if anchored else None).pixels
        if isinstance(model, Janus):
            return of_codes(model, tokens, delta, target if anchored else None)
        assert isinstance(model, (Bagel, Harmon, LatentPictures))
        clean = {Bagel: of_flow, Harmon: of_tokens}.get(type(model), of_transformer)(model, target, anchored)
        with torch.no_grad():
            plain = clean(tokens)
        latents = clean(tokens + delta)
        return model.decode_latents(target + latents - plain if anchored else latents)


def of_codes(model: Janus, tokens: Tensor, delta: Tensor, target: Tensor | None) -> Tensor:
    """Janus: the likeliest codes, forward; their mean, backward. What does not change keeps the code of the target."""
    head = model.model.generation_head
    logits, clean = head(tokens + delta), head(tokens).argmax(-1)
    codes = logits.argmax(-1)
    if target is not None:
        codes = torch.where(codes == clean, target, codes)
    book = F.normalize(model.image_tokenizer.quantize.embedding.weight, dim=-1)
    mean = logits.softmax(-1) @ book
    cells = book[codes] + mean - mean.detach()
    side = int(cells.shape[1] ** 0.5)
    cells = cells.transpose(1, 2).reshape(len(cells), -1, side, side)
    return model.image_tokenizer.decoder(model.image_tokenizer.post_quant_conv(cells))


Clean = Callable[[Tensor], Tensor]
"""(B, N, D) hidden states -> (B, C, h, w) latents, predicted in one step."""


def of_flow(model: Bagel, z: Tensor, anchored: bool) -> Clean:
    """BAGEL: one linear layer gives the velocity; a step from its time, or from pure noise."""
    time, noise = (model.config.flow.decode_time, z) if anchored else (1.0, flow.fixed_noise(z))

    def clean(hidden: Tensor) -> Tensor:
        velocity = F.linear(hidden, model.llm2vae.weight, model.llm2vae.bias)
        return noise - time * unpatched(velocity, model.config.latent_patch_size, *z.shape[2:])

    return clean


def of_transformer(model: LatentPictures, z: Tensor, anchored: bool) -> Clean:
    """OpenUni and BLIP3o-NEXT: a step of the transformer from between the target and noise, or from pure noise."""
    level = model.config.flow.decode_sigma if anchored else 1.0
    noise = torch.randn(1, *z.shape[1:], generator=torch.Generator().manual_seed(0))
    noisy = (1 - level) * z + level * noise
    times = torch.full((len(z),), 1000.0 * level)

    def clean(hidden: Tensor) -> Tensor:
        return noisy - level * model.velocity(noisy, times, model.condition(hidden))

    return clean


def of_tokens(model: Harmon, z: Tensor, anchored: bool) -> Clean:
    """Harmon: its head removes the noise of all places, under the condition of the buffers alone."""
    rows, channels, *grid = z.shape
    level = model.config.drawing.decode_level if anchored else model.config.drawing.start_level
    noise = torch.randn(1, grid[0] * grid[1], channels, generator=torch.Generator().manual_seed(0))
    kept = kept_shares()[level].float()
    start = z.flatten(2).transpose(1, 2) if anchored else torch.zeros_like(noise)
    noisy = (kept.sqrt() * start + (1 - kept).sqrt() * noise).expand(rows, -1, -1)
    nothing = torch.zeros(rows, 0, dtype=torch.long)

    def clean(hidden: Tensor) -> Tensor:
        buffers = model.mar(noisy[:, :0], nothing, grid)
        drawn = model.mar(buffers + model.proj_out(hidden.roll(hidden.shape[1], 1)), nothing, grid, decode=True)
        removed = model.mar.diffloss(noisy, torch.full(noisy.shape[:2], level), drawn)[0]
        return ((noisy - (1 - kept).sqrt() * removed) / kept.sqrt()).transpose(1, 2).unflatten(2, grid)

    return clean
