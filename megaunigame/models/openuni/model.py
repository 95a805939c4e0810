"""OpenUni: InternVL reads pictures and text; after a request for a picture it reads meta queries, whose hidden states are
the condition of a SANA diffusion transformer on the latents of a deep-compression autoencoder.

The modules are transformers' and diffusers'. Sources: arXiv 2505.23661 and the official repository (wusize/OpenUni). Unlike
there, the gradient of a generated picture reaches the understanding path through a source picture.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import InternVLModel, PreTrainedModel
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from megaunigame.attention.taps import Tap
from megaunigame.models.base import Generators, evaluating
from megaunigame.models.diffusion.latent_pictures import LatentPictures
from megaunigame.models.diffusion.modules import autoencoder
from megaunigame.models.emphasis import emphasized
from megaunigame.models.openuni.configuration import OpenUniConfig, read_config
from megaunigame.models.openuni.keys import KEYS
from megaunigame.models.openuni.parts import MetaQueries, trained_parts
from megaunigame.models.openuni.processor import OpenUniProcessor
from megaunigame.models.openuni.sizes import WRITERS
from megaunigame.models.row_noise import normal
from megaunigame.models.text.sequences import left_padded
from megaunigame.models.weights.frozen import Frozen
from megaunigame.step.inputs import GenerateInputs, GenerateOutput
from megaunigame.step.requests import GENERATE, UNDERSTAND

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, SanaTransformer2DModel


class OpenUni(LatentPictures):
    """The trained part of an OpenUni; InternVL's parameters are named as in transformers' InternVLForConditionalGeneration."""

    name = "openuni"
    groups = {
        "vision": ("model.vision_tower.",),
        "aligner": ("model.multi_modal_projector.",),
        "lm": ("model.language_model.", "lm_head."),
        "queries": ("meta_queries.",),
        "connector": ("connector.", "connector_input.", "projector."),
        "dit": ("transformer.",),
    }
    trained_by_default = ("aligner", "lm", "queries", "connector", "dit")
    passes = {
        UNDERSTAND: ("vision", "aligner", "lm"),
        GENERATE: ("vision", "aligner", "lm", "queries", "connector", "dit"),
    }
    seeing = ("vision", "aligner")
    sizes = WRITERS
    keys = KEYS
    frozen_name = "autoencoder"
    configuration = staticmethod(read_config)
    open_processor = OpenUniProcessor.from_folder
    trained_parts = staticmethod(trained_parts)

    config: OpenUniConfig
    processor: OpenUniProcessor
    frozen: Frozen[AutoencoderDC]
    model: InternVLModel
    meta_queries: MetaQueries
    connector: SiglipEncoder
    connector_input: nn.Linear
    projector: nn.Linear
    transformer: SanaTransformer2DModel

    def choose_attention(self, attention: str) -> None:
        """For tower, language model and connector; the transformer has linear attention, and torch's sdpa."""
        super().choose_attention(attention)
        self.connector.config._attn_implementation = attention

    def checkpoint_activations(self) -> None:
        """Recompute activations of all parts, layer by layer."""
        super().checkpoint_activations()
        for layer in self.connector.layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        self.transformer.enable_gradient_checkpointing()

    def build_frozen(self) -> AutoencoderDC:
        """The autoencoder, its weights not loaded."""
        return autoencoder(self.config.autoencoder)

    @property
    def dit(self) -> SanaTransformer2DModel:
        return self.transformer

    @property
    def autoencoder(self) -> AutoencoderDC:
        return self.frozen.module

    @property
    def language_model(self) -> PreTrainedModel:
        return self.model.language_model

    @property
    def vision_tower(self) -> PreTrainedModel:
        return self.model.vision_tower

    @property
    def calls_per_sample(self) -> int:
        """One, with and without guidance; the transformer is called once per step of the solver."""
        return 1

    def unreached(self, pass_name: str) -> tuple[str, ...]:
        return ("lm_head.",) if pass_name == GENERATE else ()

    # Passes

    def visual_tokens(self, images: Tensor) -> Tensor:
        """(B, I, 3, H, W) -> (B, I, N, D): tower, pixel shuffle and projector; the tokens the language model reads."""
        features = self.model.get_image_features(images.flatten(0, 1), return_dict=True)
        return features.pooler_output.unflatten(0, images.shape[:2])

    def generate(self, inputs: GenerateInputs, predict: bool) -> GenerateOutput:
        """Match the velocity of the targets' latents at a random noise level; in eval mode at that of the sample's key."""
        latents = self.encode_target(inputs.targets)
        return self.match(inputs, latents, *self.draw(inputs.keys, latents))

    def match(self, inputs: GenerateInputs, latents: Tensor, u: Tensor, noise: Tensor) -> GenerateOutput:
        """The generate pass with given latents (B, C, h, w), u (B,) in [0, 1) and noise; `inputs.targets` is not read.

        Loss of a row: sum over the latent elements of (velocity(z_sigma, sigma, hidden) - (noise - z))^2.
        """
        tap = self._prompt_tap(inputs, drawn=range(self.config.queries))
        lengths = self.lengths(inputs, self.config.queries)
        hidden = self.query_states(self.embed(inputs), inputs.attention, inputs.front_padding, tap, lengths)
        errors = self.velocity_errors(latents, u, noise, self.condition(hidden))
        loss = emphasized(errors, inputs.emphasis).flatten(1).sum(1)
        return GenerateOutput(
            loss_sum=torch.where(inputs.counts > 0, loss, 0.0),
            hidden=hidden,
            target=latents,
            attention=None if tap is None else tap.shares(),
        )

    def query_states(
        self,
        embeds: Tensor,
        attention: Tensor,
        front_padding: bool = True,
        tap: Tap | None = None,
        lengths: list[int] | None = None,
    ) -> Tensor:
        """(B, S, D) embedded prompts, padded on either side -> (B, N, D): hidden states of the meta queries after them.

        `front_padding` False: no prompt is padded, on either side. `lengths`: as in `_read`.
        """
        embeds = torch.cat([embeds, self.meta_queries(len(embeds)).to(embeds.dtype)], dim=1)
        attention = F.pad(attention, (0, self.config.queries), value=True)
        # The queries follow the last real token: with padding between them, counted positions would leave a gap.
        positions = (attention.long().cumsum(1) - 1).clamp_min(0)
        read = self._read(embeds, attention, front_padding=front_padding, positions=positions, tap=tap, lengths=lengths)
        return read[:, -self.config.queries :]

    def condition(self, hidden: Tensor) -> Tensor:
        """(B, N, D) hidden states -> (B, N, caption width), the condition of the transformer."""
        if hasattr(self, "connector_input"):
            hidden = self.connector_input(hidden)
        return self.projector(self.connector(inputs_embeds=hidden).last_hidden_state)

    # Pictures

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
        """Pictures (B, 3, H, W) in [-1, 1] with classifier-free guidance.

        The scale of the starting noise was fixed in training: `temperature` is ignored. `perturb` maps the hidden states
        (B, N, D) to what is added to them.
        """
        with evaluating(self):
            hidden = self._sample_states(inputs, guided=guidance != 1)
            if perturb is not None:
                rows = len(inputs.tokens)
                hidden[:rows] += perturb(hidden[:rows]).to(hidden.dtype)
            shape = (len(inputs.tokens), *self.config.latent_shape)
            start = normal(shape, generator).to(hidden.device)
            return self.decode_target(self.sample_latents(start, self.condition(hidden), guidance))

    def _sample_states(self, inputs: GenerateInputs, *, guided: bool) -> Tensor:
        """(B, N, D), or (B + 1, N, D) with those of the unconditional request after them, from one call."""
        embeds, attention = self.embed(inputs), inputs.attention
        if guided:
            tokens = torch.tensor([self.processor.unconditional_tokens()], device=embeds.device)
            width = max(embeds.shape[1], tokens.shape[1])
            last, read = self.language_model.embed_tokens(tokens), torch.ones_like(tokens, dtype=torch.bool)
            embeds = torch.cat([left_padded(embeds, width), left_padded(last, width)])
            attention = torch.cat([left_padded(attention, width), left_padded(read, width)])
        return self.query_states(embeds, attention)
