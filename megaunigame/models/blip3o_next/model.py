"""BLIP3o-NEXT: a language model of Qwen3's layout reads pictures as codes and plans a picture in codes; its hidden states at
the codes are the condition of a SANA diffusion transformer on the latents of a deep-compression autoencoder.

The modules are transformers' and diffusers'. Sources: arXiv 2510.15857 and the official repository (JiuhaiChen/BLIP3o, branch
BLIP3o-NEXT). Three things are not as there. The condition is read where its sampling reads it, at the scale and the codes; its
training takes the last 730 positions of the padded row. The loss of a generate row is on codes and latents; its training also
learns the tags and the request itself. A row without condition has no text, and the transformer gets zeros; there the text
stays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen3Model

from megaunigame.models.base import Generators, clamped, evaluating
from megaunigame.models.blip3o_next.choosing import LikeliestPicker
from megaunigame.models.blip3o_next.configuration import Blip3oNextConfig, read_config
from megaunigame.models.blip3o_next.keys import CAPTION, DIT, KEYS
from megaunigame.models.blip3o_next.parts import FrozenPictures, check_stored, trained_parts
from megaunigame.models.blip3o_next.processor import Blip3oNextProcessor
from megaunigame.models.blip3o_next.sizes import SIZES
from megaunigame.models.blip3o_next.vq import VisionTokenizer
from megaunigame.models.causal.decoding import CachedReader, draw_codes
from megaunigame.models.causal.own_rows import own_row
from megaunigame.models.causal.token_sources import TokenSources
from megaunigame.models.diffusion import flow
from megaunigame.models.diffusion.latent_pictures import LatentPictures
from megaunigame.models.emphasis import emphasized
from megaunigame.models.row_noise import normal
from megaunigame.models.weights.frozen import Frozen
from megaunigame.step.inputs import GenerateInputs, GenerateOutput
from megaunigame.step.requests import GENERATE, UNDERSTAND

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, SanaTransformer2DModel


class Blip3oNext(LatentPictures, TokenSources):
    """The trained part of a BLIP3o-NEXT; names of parameters are the official ones."""

    name = "blip3o_next"
    groups = {
        "embedding": ("model.embed_tokens.",),
        "lm": ("model.layers.", "model.norm."),
        "connector": ("model.diffusion_connector.",),
        "caption": CAPTION,
        "dit": DIT,
    }
    trained_by_default = ("embedding", "lm", "connector", "caption")
    passes = {UNDERSTAND: ("embedding", "lm"), GENERATE: tuple(groups)}
    sizes = SIZES
    keys = KEYS
    frozen_name = "autoencoder and vision tokenizer"
    released_guidance = 2.0
    configuration = staticmethod(read_config)
    open_processor = Blip3oNextProcessor.from_folder
    trained_parts = staticmethod(trained_parts)
    check_stored = staticmethod(check_stored)

    config: Blip3oNextConfig
    processor: Blip3oNextProcessor
    frozen: Frozen[FrozenPictures]
    model: Qwen3Model

    def checkpoint_activations(self) -> None:
        """Recompute activations of language model and transformer, layer by layer."""
        super().checkpoint_activations()
        self.dit.enable_gradient_checkpointing()

    def build_frozen(self) -> FrozenPictures:
        """Autoencoder and vision tokenizer, their weights not loaded."""
        return FrozenPictures(self.config)

    @property
    def language_model(self) -> PreTrainedModel:
        """It holds connector and transformer, too, as in the release; its forward does not call them."""
        return self.model

    @property
    def adapted(self) -> nn.Module:
        return self.model.layers

    @property
    def dit(self) -> SanaTransformer2DModel:
        return self.model.sana  # type: ignore[return-value]

    @property
    def autoencoder(self) -> AutoencoderDC:
        return self.frozen.module.sana_vae

    @property
    def vision_tokenizer(self) -> VisionTokenizer:
        return self.frozen.module.tokenizer

    @property
    def calls_per_sample(self) -> int:
        """One for the request, and one per code; the transformer is called once per step of the solver."""
        return 1 + self.grid.count

    # Passes

    def generate(self, inputs: GenerateInputs, predict: bool) -> GenerateOutput:
        """Predict the codes of the targets, and match the velocity of their latents at a random noise level; in eval mode at
        that of the sample's key."""
        latents = self.encode_target(inputs.targets)
        return self.match(inputs, self.codes_of(inputs.targets), latents, *self.draw(inputs.keys, latents))

    def match(self, inputs: GenerateInputs, codes: Tensor, latents: Tensor, u: Tensor, noise: Tensor) -> GenerateOutput:
        """The generate pass with given codes (B, N), latents (B, C, h, w), u (B,) in [0, 1) and noise; `inputs.targets` is not
        read. Hidden states are (B, N + 1, D): of the scale, and of each code.

        Loss of a row: sum of the cross-entropies of its codes, plus N times the mean squared error of the velocity.
        """
        count, grid = codes.shape[1], self.grid
        attention = F.pad(inputs.attention, (0, count), value=True)
        tap = self._prompt_tap(inputs, drawn=range(count))
        embeds = self._embed_with(inputs, grid.tokens(codes))
        lengths = self.lengths(inputs, count)
        read = self._read(embeds, attention, front_padding=inputs.front_padding, tap=tap, lengths=lengths)
        hidden = read[:, -count - 1 :]
        scored = self._scores(hidden[:, :-1].flatten(0, 1), (codes + grid.first).flatten())
        of_codes = emphasized(scored.losses.view(codes.shape), inputs.emphasis).sum(1)
        errors = self.velocity_errors(latents, u, noise, self.condition(self.kept(hidden, inputs)))
        of_latents = emphasized(errors, inputs.emphasis).flatten(1).mean(1)
        return GenerateOutput(
            loss_sum=torch.where(inputs.counts > 0, of_codes + count * of_latents, 0.0),
            hidden=hidden,
            target=latents,
            attention=None if tap is None else tap.shares(),
        )

    def kept(self, hidden: Tensor, inputs: GenerateInputs) -> Tensor:
        """(B, N + 1, D): zeros in rows whose condition was dropped, which are those without text and source."""
        empty = torch.tensor(self.processor.unconditional_tokens()).to(hidden.device, non_blocking=True)
        if inputs.tokens.shape[1] < len(empty):
            return hidden
        last = inputs.tokens[:, -len(empty) :]
        dropped = (last == empty).all(1) & (inputs.attention.sum(1) == len(empty))
        return torch.where(dropped.view(-1, 1, 1), torch.zeros_like(hidden), hidden)

    def condition(self, hidden: Tensor) -> Tensor:
        """(B, N, D) hidden states -> (B, N, caption width), the condition of the transformer."""
        return self.model.diffusion_connector(hidden)  # type: ignore[operator,no-any-return]

    # Pictures

    def solve(self, velocity: flow.Velocity, start: Tensor) -> Tensor:
        return flow.euler(velocity, start, self.config.flow.sample_shift, self.config.flow.sample_steps)

    @torch.no_grad()
    def codes_of(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, N) codes of the pictures as sources. No gradient."""
        return self.vision_tokenizer.encode(self.as_source(pixels)).flatten(1)

    def as_source(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> resized to source pictures, in [-1, 1]; differentiable."""
        size = self.processor.source_size
        if pixels.shape[-1] == size:
            return pixels
        return clamped(F.interpolate(pixels, (size, size), mode="bicubic", antialias=True))

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
        """Pictures (B, 3, H, W) in [-1, 1]: codes are drawn at `temperature`, without guidance, and then latents from noise,
        with the guidance of the transformer.

        `perturb` maps the hidden states (B, N + 1, D) to what is added to them.
        """
        with evaluating(self):
            _, hidden = self.sample_states(inputs, temperature=temperature, generator=generator, lockstep=lockstep)
            if perturb is not None:
                hidden = hidden + perturb(hidden).to(hidden.dtype)
            if guidance != 1:
                hidden = torch.cat([hidden, torch.zeros_like(hidden[:1])])
            start = normal((len(inputs.tokens), *self.config.latent_shape), generator).to(hidden.device)
            return self.decode_target(self.sample_latents(start, self.condition(hidden), guidance))

    @torch.no_grad()
    def sample_states(
        self, inputs: GenerateInputs, *, temperature: float, generator: Generators, lockstep: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(B, N) codes, and the hidden states (B, N + 1, D) of the scale and of each code. Call it inside `evaluating`."""
        inputs = inputs if lockstep else self.with_own_codes(inputs)
        pick = LikeliestPicker(temperature, generator, self.config.choice)
        embeds, states = self.embed(inputs), list[Tensor]()
        reader = self._reader(inputs.attention)

        def score(hidden: Tensor) -> Tensor:
            states.append(hidden)
            return self.code_logits(hidden)

        exact = not lockstep and embeds.dtype == torch.float32
        alone = partial(self._logits_alone, inputs) if exact else None
        codes = draw_codes(
            reader, embeds, self.grid.count, embed=self.embed_codes, score=score, pick=pick, guidance=1, alone=alone
        )
        states.append(reader.token(self.embed_codes(codes[:, -1])))
        if not lockstep:
            pick.check_finite()
        return codes, torch.stack(states, dim=1)

    def _reader(self, attention: Tensor) -> CachedReader:
        return CachedReader(self.language_model, attention, flash=self._flash, leave_point=self.leave_point)

    def _logits_alone(self, inputs: GenerateInputs, row: int, codes: Tensor) -> Tensor:
        """(1, V): logits after the request of a row and its `codes` (1, n), computed by itself."""
        one = own_row(inputs, row)
        attention = F.pad(one.attention, (0, codes.shape[1]), value=True)
        embeds = torch.cat([self.embed(one), self.embed_codes(codes)], dim=1)
        return self.code_logits(self._reader(attention).prompt(embeds))
