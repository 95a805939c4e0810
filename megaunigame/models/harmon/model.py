"""Harmon: one masked autoencoder both reads and draws pictures, as latents of a KL autoencoder.

To understand, a language model reads the encoder's tokens of a whole picture. To draw, it reads those of the visible tokens of
the target after the request; what it makes of them is added to them, the decoder completes the masked places, and a diffusion
head draws the latent of each. Sources: arXiv 2503.21979 and the official repository (wusize/Harmon); with a source picture
before the request, arXiv 2601.21406.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from megaunigame.attention.taps import Tap
from megaunigame.models.base import DecodedPictures, Generators, clamped, evaluating
from megaunigame.models.causal.gradient_scale import scale_gradient
from megaunigame.models.causal.head import TokenHead
from megaunigame.models.causal.model import CausalModel, with_pictures
from megaunigame.models.emphasis import emphasized
from megaunigame.models.harmon import diffusion, masking
from megaunigame.models.harmon.autoencoder import Autoencoder
from megaunigame.models.harmon.configuration import HarmonConfig, read_config
from megaunigame.models.harmon.keys import KEYS
from megaunigame.models.harmon.mar import Grid, MaskedAutoencoder, taken
from megaunigame.models.harmon.masking import Draw
from megaunigame.models.harmon.parts import autoencoder, check_stored, trained_parts
from megaunigame.models.harmon.processor import HarmonProcessor
from megaunigame.models.harmon.sampling import PictureReader, RowNoise, draw
from megaunigame.models.harmon.sizes import SIZES
from megaunigame.models.text.sequences import left_padded
from megaunigame.models.weights.frozen import Frozen
from megaunigame.step.inputs import GenerateInputs, GenerateOutput, UnderstandInputs
from megaunigame.step.requests import GENERATE, UNDERSTAND

DECODE_SEED = 0


class Harmon(CausalModel):
    """The trained part of a Harmon; parameter names are the official ones."""

    name = "harmon"
    groups = {
        "encoder": ("mar.fake_latent", "mar.z_proj", "mar.encoder_"),
        "aligner": ("proj_in.",),
        "lm": ("llm.",),
        "decoder": ("proj_out.", "mar.decoder_", "mar.mask_token", "mar.diffusion_pos_embed_learned"),
        "head": ("mar.diffloss.",),
    }
    trained_by_default = ("encoder", "aligner", "lm", "decoder", "head")
    passes = {
        UNDERSTAND: ("encoder", "aligner", "lm"),
        GENERATE: ("encoder", "aligner", "lm", "decoder", "head"),
    }
    seeing = reads_target = ("encoder", "aligner")
    sizes = SIZES
    keys = KEYS
    frozen_name = "autoencoder"
    predicts_whole = False
    released_guidance = 3.0
    configuration = staticmethod(read_config)
    open_processor = HarmonProcessor.from_folder
    trained_parts = staticmethod(trained_parts)
    check_stored = staticmethod(check_stored)

    config: HarmonConfig
    processor: HarmonProcessor
    frozen: Frozen[Autoencoder]
    llm: nn.ModuleDict
    mar: MaskedAutoencoder
    proj_in: nn.Sequential
    proj_out: nn.Sequential

    def checkpoint_activations(self) -> None:
        """Recompute activations of all parts, layer by layer."""
        super().checkpoint_activations()
        self.mar.checkpoint_activations()

    def build_frozen(self) -> Autoencoder:
        """The autoencoder, its weights not loaded."""
        return autoencoder(self.config)

    @property
    def language_model(self) -> PreTrainedModel:
        return self.llm["model"]  # type: ignore[return-value]

    @property
    def lm_head(self) -> TokenHead:  # type: ignore[override]
        return self.llm["lm_head"]  # type: ignore[return-value]

    @property
    def calls_per_sample(self) -> int:
        """One for the request, and one per round."""
        return 1 + self.config.drawing.rounds

    @property
    def picture_grid(self) -> Grid:
        """Of a generated picture."""
        return self.config.side, self.config.side

    # Passes

    def encode(self, latents: Tensor, seen: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Latents (B, V, C) of the places `seen` (B, V) -> tokens (B, K + V, E), buffers first, and what the language model
        reads of them (B, V + K, D), buffers last."""
        tokens = self.mar(latents.to(self.mar.z_proj.weight.dtype), seen, grid)
        return tokens, self.proj_in(tokens).roll(-self.config.buffers, 1)

    def visual_tokens(self, images: Tensor) -> Tensor:
        """(B, I, 3, H, W) -> (B, I, N + K, D): the tokens the language model reads of whole pictures; differentiable."""
        latents = self._latents(images.flatten(0, 1))
        grid = latents.shape[-2], latents.shape[-1]
        return self.encode(in_lines(latents), _everywhere(latents), grid)[1].unflatten(0, images.shape[:2])

    def embed(self, inputs: UnderstandInputs | GenerateInputs) -> Tensor:
        """As of `CausalModel`; the gradient of understand rows into the encoder is scaled, unless it goes on to pixels."""
        embeds = self.language_model.embed_tokens(inputs.tokens)
        if inputs.images is None:
            return embeds
        visual = self.visual_tokens(inputs.images)
        if isinstance(inputs, UnderstandInputs):
            factors = torch.full((len(visual),), self.config.drawing.understanding_gradient, device=visual.device)
            if inputs.images.requires_grad:
                factors[slice(None) if inputs.gradient_rows is None else inputs.gradient_rows] = 1.0
            visual = scale_gradient(visual, factors)
        return with_pictures(embeds, visual, inputs)

    def generate(self, inputs: GenerateInputs, predict: bool) -> GenerateOutput:
        """Predict the noise in masked tokens of the target, at random places and levels; in eval mode at fixed ones per key.

        In training without a gradient everything is masked: a picture is redrawn aside, from its request alone.
        """
        latents = self.encode_target(inputs.targets)
        tokens, drawing = in_lines(latents), self.config.drawing
        if self.training:
            whole = not torch.is_grad_enabled()
            drawn = masking.training_draw(tokens, drawing.least_masked, drawing.copies, whole=whole)
        else:
            drawn = masking.evaluation_draw(inputs.keys, tokens, drawing.least_masked, drawing.copies)
        return self.match(inputs, latents, drawn)

    def match(self, inputs: GenerateInputs, latents: Tensor, drawn: Draw) -> GenerateOutput:
        """The generate pass with given latents (B, C, h, w) and draw; `inputs.targets` is not read.

        Loss of a row: N times the mean over its masked tokens of squared error of the noise + bits of the bound, mean over
        copies. `hidden` (B, K, D) are the states of the buffers, which come last and so have read all else.
        """
        grid, tokens, buffers = (latents.shape[-2], latents.shape[-1]), in_lines(latents), self.config.buffers
        visible = drawn.seen.shape[1]
        tap = self._prompt_tap(inputs, drawn=range(visible + buffers))
        encoded, read = self.encode(taken(tokens, drawn.seen), drawn.seen, grid)
        lengths = self.lengths(inputs, visible + buffers)
        states = self.picture_states(self.embed(inputs), inputs.attention, read, inputs.front_padding, tap, lengths)
        condition = taken(self.complete(encoded, states, drawn.seen, grid), drawn.masked)
        clean = taken(tokens, drawn.masked).expand(len(drawn.levels), -1, -1, -1)
        noisy = diffusion.noisy(clean, drawn.noise, drawn.levels)
        predicted = self.mar.diffloss(noisy, drawn.levels, condition.expand(len(drawn.levels), -1, -1, -1))
        losses = diffusion.token_losses(clean, noisy, drawn.levels, drawn.noise, *predicted)
        of_tokens = (losses.squared + losses.bits).mean(0)
        everywhere = torch.zeros(tokens.shape[:2], device=of_tokens.device).scatter(1, drawn.masked, of_tokens)
        weighted = emphasized(everywhere.view(-1, 1, *grid), inputs.emphasis).flatten(1)
        loss = weighted.sum(1) * (tokens.shape[1] / drawn.masked.shape[1])
        return GenerateOutput(
            loss_sum=torch.where(inputs.counts > 0, loss, 0.0),
            hidden=states[:, -buffers:],
            target=latents,
            attention=None if tap is None else tap.shares(),
        )

    def picture_states(
        self,
        embeds: Tensor,
        attention: Tensor,
        read: Tensor,
        front_padding: bool = True,
        tap: Tap | None = None,
        lengths: list[int] | None = None,
    ) -> Tensor:
        """(B, S, D) embedded requests, padded on either side, and tokens of pictures (B, L, D) -> their states (B, L, D);
        `lengths`: as in `_read`."""
        length = read.shape[1]
        attention = F.pad(attention, (0, length), value=True)
        # The picture follows the last real token: with padding between them, counted positions would leave a gap.
        positions = (attention.long().cumsum(1) - 1).clamp_min(0)
        embeds = torch.cat([embeds, read.to(embeds.dtype)], dim=1)
        read = self._read(embeds, attention, front_padding=front_padding, positions=positions, tap=tap, lengths=lengths)
        return read[:, -length:]

    def complete(self, encoded: Tensor, states: Tensor, seen: Tensor, grid: Grid) -> Tensor:
        """(B, K + V, E) of the encoder, (B, V + K, D) of the language model -> conditions (B, N, E) of the diffusion head."""
        return self.mar(encoded + self.proj_out(states.roll(self.config.buffers, 1)), seen, grid, decode=True)

    # Pictures

    def _latents(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w) float32, the mean of the posterior, scaled; differentiable."""
        return self.frozen.module.posterior(pixels)[0] * self.config.autoencoder["scaling_factor"]

    @torch.no_grad()
    def encode_target(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w) float32 latents of about unit variance. No gradient."""
        return self._latents(pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W), about [-1, 1], not clamped; differentiable."""
        return self.frozen.module.decode(latents / self.config.autoencoder["scaling_factor"])

    @torch.no_grad()
    def decode_target(self, target: Tensor) -> Tensor:
        """(B, C, h, w) latents -> (B, 3, H, W) in [-1, 1]."""
        return self.decode_latents(target).clamp(-1, 1)

    def decode(self, hidden: Tensor, delta: Tensor | None = None, anchor: Tensor | None = None) -> DecodedPictures:
        """(B, K, D) states of the buffers, plus `delta` -> pixels (B, 3, H, W) in [-1, 1], differentiable.

        The picture that the decoder draws from the buffers alone, its latents predicted in one step. Without `anchor` from
        noise at `drawing.start_level`. With `anchor` (the target latents z) from z and noise at `drawing.decode_level`, and
        the decoded latents are z + (clean(hidden + delta) - clean(hidden)). The noise is fixed, and nothing is dropped out, so
        all differences come from the states. All of this is in float32: the difference of two bfloat16 networks is rounding
        where the perturbation is small.
        """
        hidden = hidden.float()
        with evaluating(self.mar):
            clean = self._clean(hidden if delta is None else hidden + delta, anchor)
            if delta is None:
                plain = clean.detach()
            else:
                with torch.no_grad():
                    plain = self._clean(hidden, anchor)
        change = clean - plain
        reference = plain if anchor is None else anchor
        changed = (change.detach().flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)).clamp(0, 1)
        latents = clean if anchor is None else anchor + change
        return DecodedPictures(clamped(self.decode_latents(latents)), changed)

    def _clean(self, hidden: Tensor, anchor: Tensor | None) -> Tensor:
        """(B, K, D) -> (B, C, h, w) float32: one-step prediction."""
        rows, device, drawing = len(hidden), hidden.device, self.config.drawing
        nothing = torch.zeros(1, 0, dtype=torch.long, device=device)
        buffers = self.mar(torch.zeros(1, 0, self.config.channels, device=device), nothing, self.picture_grid)
        condition = self.complete(buffers, hidden, nothing.expand(rows, -1), self.picture_grid)
        generator = torch.Generator().manual_seed(DECODE_SEED)
        noise = torch.randn(1, self.config.tokens, self.config.channels, generator=generator).to(device, non_blocking=True)
        level = drawing.start_level if anchor is None else drawing.decode_level
        levels = torch.full((rows, self.config.tokens), level, device=device)
        start = torch.zeros_like(noise) if anchor is None else in_lines(anchor)
        noisy = diffusion.noisy(start, noise, levels)
        clean = diffusion.clean_from(noisy, self.mar.diffloss(noisy, levels, condition)[0], level)
        return in_grid(clean, self.picture_grid)

    @torch.no_grad()
    def sample(
        self,
        inputs: GenerateInputs,
        *,
        guidance: float,
        temperature: float,
        generator: Generators,
        perturb: Callable[[Tensor], Tensor] | None = None,
        lockstep: bool = True,
    ) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] with classifier-free guidance, on the noise that the diffusion head predicts.

        At `temperature` 0 the steps of the diffusion add no noise; the start is random as before. `perturb` maps the states
        (B, K, D) of the buffers to what is added to them, in every round.
        """
        with evaluating(self):
            embeds, attention = self._prompts(inputs, guided=guidance != 1)
            reader = PictureReader(self.language_model, embeds, attention, flash=self._flash)
            rows, config = len(inputs.tokens), self.config
            noise = RowNoise(generator, rows, config.channels, embeds.device)
            orders = noise.orders(config.tokens)
            return self.decode_target(
                in_grid(draw(self, reader, orders, noise, guidance, temperature, perturb), self.picture_grid)
            )

    def _prompts(self, inputs: GenerateInputs, *, guided: bool) -> tuple[Tensor, Tensor]:
        """(B, S, D) embedded requests and their attention (B, S); with guidance, followed by B without condition."""
        embeds, attention = self.embed(inputs), inputs.attention
        if not guided:
            return embeds, attention
        tokens = torch.tensor([self.processor.unconditional_tokens()], device=embeds.device).expand(len(embeds), -1)
        width = max(embeds.shape[1], tokens.shape[1])
        last, read = self.language_model.embed_tokens(tokens), torch.ones_like(tokens, dtype=torch.bool)
        embeds = torch.cat([left_padded(embeds, width), left_padded(last, width)])
        return embeds, torch.cat([left_padded(attention, width), left_padded(read, width)])


def in_lines(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> tokens (B, N, C)."""
    return latents.flatten(2).transpose(1, 2)


def in_grid(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, N, C) -> latents (B, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def _everywhere(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, N): all places."""
    return torch.arange(math.prod(latents.shape[2:]), device=latents.device).expand(len(latents), -1)
