"""BAGEL: a language model reads text and pictures with one set of weights, and latents of pictures with another one, which
draws them by flow matching. Both attend jointly.

Sources: arXiv 2505.14683 and the official repository (ByteDance-Seed/Bagel), whose rows, masks and guidance these are. Unlike
there, all pictures of a pass have one size, so none is padded before it is encoded, and a pass never depends on what is in its
rows: requests with fewer source pictures than others read those places of a pass with sources as padding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from megaunigame.attention.positions import prompt_text
from megaunigame.attention.taps import Tap
from megaunigame.models.bagel import flow
from megaunigame.models.bagel.autoencoder import Autoencoder, patched, unpatched
from megaunigame.models.bagel.checking import check_stored
from megaunigame.models.bagel.configuration import BagelConfig, read_config
from megaunigame.models.bagel.files import checkpoint_files
from megaunigame.models.bagel.keys import AFTER_KEYS, KEYS, of_expert
from megaunigame.models.bagel.language_model import DRAWING, LanguageModel
from megaunigame.models.bagel.parts import trained_parts
from megaunigame.models.bagel.processor import BagelProcessor
from megaunigame.models.bagel.sampling import sample_latents
from megaunigame.models.bagel.sizes import SIZES
from megaunigame.models.bagel.spans import Layout, Spans, drawing_layout, positions_of, sees, spans_of
from megaunigame.models.bagel.tables import table_rows
from megaunigame.models.bagel.vision import Connector, TimeEmbedder, VisionTower
from megaunigame.models.base import DecodedPictures, Generators, clamped, evaluating
from megaunigame.models.causal import masks
from megaunigame.models.causal.model import CausalModel
from megaunigame.models.emphasis import emphasized
from megaunigame.models.row_noise import normal
from megaunigame.models.weights.frozen import Frozen
from megaunigame.step.inputs import GenerateInputs, GenerateOutput, Taps, UnderstandInputs
from megaunigame.step.requests import GENERATE, UNDERSTAND


class Bagel(CausalModel):
    """The trained part of a BAGEL; parameter names are the official ones, without `language_model.`.

    The two sets of weights are the groups `lm`, with embedding and head, and `lm_gen`. Only latent tokens go through the
    second one, so an understand pass never reads it, and a generate pass always reads both.
    """

    name = "bagel"
    groups = {
        "vision": ("vit_model.",),
        "aligner": ("connector.",),
        "lm": ("model.embed_tokens.", *of_expert(""), "model.norm.", "lm_head."),
        "lm_gen": (*of_expert(DRAWING), f"model.norm{DRAWING}."),
        "generation": ("time_embedder.", "vae2llm.", "llm2vae."),
    }
    trained_by_default = ("aligner", "lm", "lm_gen", "generation")
    passes = {
        UNDERSTAND: ("vision", "aligner", "lm"),
        GENERATE: ("vision", "aligner", "lm", "lm_gen", "generation"),
    }
    seeing = ("vision", "aligner")
    sizes = SIZES
    keys = KEYS
    frozen_name = "autoencoder"
    only_causal = False
    can_pack = (UNDERSTAND,)
    predicts_whole = False
    interleaves = True
    divides_rows = False
    released_guidance = 4.0
    configuration = staticmethod(read_config)
    open_processor = BagelProcessor.from_folder
    trained_parts = staticmethod(trained_parts)
    files = staticmethod(checkpoint_files)
    check_stored = staticmethod(check_stored)

    config: BagelConfig
    processor: BagelProcessor
    frozen: Frozen[Autoencoder]
    model: LanguageModel
    vit_model: VisionTower
    connector: Connector
    time_embedder: TimeEmbedder
    vae2llm: nn.Linear
    llm2vae: nn.Linear

    def build_frozen(self) -> Autoencoder:
        """The autoencoder, its weights not loaded."""
        return Autoencoder(*self.config.autoencoder_sizes(), self.config.vae["scale"], self.config.vae["shift"])

    @property
    def autoencoder(self) -> Autoencoder:
        return self.frozen.module

    @property
    def language_model(self) -> PreTrainedModel:
        return self.model

    @property
    def vision_tower(self) -> PreTrainedModel:
        return self.vit_model

    @property
    def calls_per_sample(self) -> int:
        """One per step, with and without guidance."""
        return self.config.flow.sample_points - 1

    def unreached(self, pass_name: str) -> tuple[str, ...]:
        """Of a generate pass: what comes after the last keys and values of text and seen pictures."""
        if pass_name != GENERATE:
            return ()
        last = f"model.layers.{self.config.get_text_config().num_hidden_layers - 1}"
        return (*(f"{last}.{module}." for module in AFTER_KEYS), "model.norm.", "lm_head.")

    # Reading

    def visual_tokens(self, images: Tensor) -> Tensor:
        """(B, I, 3, H, W) -> (B, I, N, D): tower, connector and positions; the tokens the language model reads."""
        tokens = self.connector(self.vit_model(images.flatten(0, 1)))
        height, width = (side // self.config.vision.patch_size for side in images.shape[-2:])
        table = table_rows(height, width, self.config.width, tokens.device)
        return (tokens + table.to(tokens.dtype)).unflatten(0, images.shape[:2])

    def opened(self, inputs: UnderstandInputs) -> Tensor:
        """(B, S, S): a picture sees itself, its begin and end token included."""
        return sees(self._spans(inputs))

    def positions(self, inputs: UnderstandInputs) -> Tensor:
        """(B, S): a picture is one position."""
        return positions_of(self._spans(inputs), inputs.attention, inputs.segments)

    def _spans(self, inputs: UnderstandInputs) -> Spans:
        return spans_of(inputs.tokens, inputs.attention, self.processor.format.begin, self.processor.format.end)

    # Drawing

    def generate(self, inputs: GenerateInputs, predict: bool) -> GenerateOutput:
        """Match the velocity of the targets' latents at a random time; in eval mode at that of the sample's key.

        In training without a gradient, where a picture is redrawn for its hidden states, time and noise are those of `decode`.
        """
        latents = self._latents(inputs.targets)
        sources = None if inputs.source_pixels is None else self._latents(inputs.source_pixels.flatten(0, 1))
        if self.training and not torch.is_grad_enabled():
            t, noise = (
                torch.full((len(latents),), self.config.flow.decode_time, device=latents.device),
                flow.fixed_noise(latents),
            )
            return self.match(inputs, latents, t, noise, sources)
        u, noise = flow.training_draw(latents) if self.training else flow.evaluation_draw(inputs.keys, latents)
        return self.match(inputs, latents, flow.shifted(u, self.config.flow.train_shift), noise, sources)

    def match(
        self, inputs: GenerateInputs, latents: Tensor, t: Tensor, noise: Tensor, sources: Tensor | None = None
    ) -> GenerateOutput:
        """The generate pass with given latents (B, C, h, w), times (B,), noise and latents of sources (B * J, C, h', w');
        `inputs.targets` and `inputs.source_pixels` are not read.

        Loss of a row: sum over its tokens of the mean over their numbers of (velocity - (noise - z))^2.
        """
        size = latents.shape[-2:]
        clean = None if sources is None else self.clean_tokens(sources, len(latents))
        noisy = patched(flow.mix(latents, noise, t), self.config.latent_patch_size)
        layout = self.layout(inputs, inputs.attention, clean, noisy.shape[1])
        tap = self._tap(inputs, layout, noisy.shape[1])
        hidden = self.drawn_states(self.embed(inputs), noisy, t, clean, size, layout, tap)
        target = patched(noise - latents, self.config.latent_patch_size)
        loss = emphasized((self.llm2vae(hidden).float() - target).square().mean(-1), inputs.emphasis).sum(1)
        return GenerateOutput(
            loss_sum=torch.where(inputs.counts > 0, loss, 0.0),
            hidden=hidden,
            target=latents,
            attention=None if tap is None else tap.shares(),
        )

    def layout(self, inputs: GenerateInputs, attention: Tensor, clean: Tensor | None, drawn: int) -> Layout:
        """How requests are read of which the tokens in `attention` (B, S) are; `clean`: of `clean_tokens`."""
        names, (sources, each) = self.processor.format, (0, 0) if clean is None else clean.shape[1:3]
        return drawing_layout(inputs.tokens, attention, sources, each, drawn, names.begin, names.end, names.image)

    def clean_tokens(self, sources: Tensor, rows: int) -> Tensor:
        """(B * J, C, h, w) latents of source pictures -> (B, J, N, c + D): with their places, as `_placed`."""
        tokens = self._placed(patched(sources, self.config.latent_patch_size), sources.shape[-2:])
        return tokens.unflatten(0, (rows, -1))

    def _placed(self, tokens: Tensor, size: torch.Size) -> Tensor:
        """(B, N, c) latent tokens of pictures of `size` cells -> (B, N, c + D): with the rows of the position table."""
        height, width = (side // self.config.latent_patch_size for side in size)
        table = table_rows(height, width, self.config.width, tokens.device)
        return torch.cat([tokens, table.expand(len(tokens), -1, -1)], -1)

    def drawn_states(
        self,
        embeds: Tensor,
        noisy: Tensor,
        t: Tensor,
        clean: Tensor | None,
        size: torch.Size,
        layout: Layout,
        tap: Tap | None = None,
    ) -> Tensor:
        """(B, S, D) embedded requests and (B, N, c) noisy latent tokens at times (B,) -> hidden states (B, N, D) of the latter.

        `clean`: what `clean_tokens` made of source pictures, which are at time 0.
        """
        drawn, placed = noisy.shape[1], self._placed(noisy, size)
        times = t.unsqueeze(1)
        if clean is not None:
            placed, times = torch.cat([clean.flatten(1, 2), placed], 1), torch.cat([torch.zeros_like(times), times], 1)
        tokens, table = placed.split([noisy.shape[2], self.config.width], -1)
        at = self.time_embedder(times)
        at = torch.cat([part.expand(-1, count, -1) for part, count in _parts(at, placed.shape[1], drawn)], 1)
        latents = self.vae2llm(tokens.to(embeds.dtype)) + at + table.to(embeds.dtype)
        options = {} if tap is None else {"tap": tap}
        read = self.language_model(
            inputs_embeds=embeds,
            latents=latents,
            attention_mask=masks.additive(layout.mask, embeds.dtype),
            position_ids=layout.positions,
            **options,
        )
        return read.last_hidden_state[:, -drawn:]

    def _tap(self, inputs: GenerateInputs, layout: Layout, drawn: int) -> Tap | None:
        """Q: latent tokens of the picture to draw, the last ones of a row."""
        after = layout.mask.shape[-1] - inputs.tokens.shape[1]
        return self._prompt_tap(inputs, drawn=range(after - drawn, after), seen=after)

    def _prompt_text(self, inputs: GenerateInputs, taps: Taps) -> Tensor:
        """As in other families, the last token before the picture is its begin token; the end token is not text."""
        text = prompt_text(inputs, taps)
        text[:, -2 if taps.compat else -1 :] = False
        return text

    # Pictures

    def _latents(self, pixels: Tensor) -> Tensor:
        """What a pass draws or reads: in training with a gradient, samples of the posterior."""
        if not (self.training and torch.is_grad_enabled()):
            return self.encode_target(pixels)
        with torch.no_grad():
            side = [edge // self.autoencoder.cell for edge in pixels.shape[-2:]]
            noise = torch.randn(len(pixels), self.config.vae["channels"], *side, device=pixels.device)
            return self.autoencoder.encode(pixels, noise)

    @torch.no_grad()
    def encode_target(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w) float32 latents of about unit variance: posterior means. No gradient."""
        return self.autoencoder.encode(pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W), about [-1, 1], not clamped; differentiable."""
        return self.autoencoder.decode(latents)

    @torch.no_grad()
    def decode_target(self, target: Tensor) -> Tensor:
        """(B, C, h, w) latents -> (B, 3, H, W) in [-1, 1]."""
        return self.decode_latents(target).clamp(-1, 1)

    def decode(self, hidden: Tensor, delta: Tensor | None = None, anchor: Tensor | None = None) -> DecodedPictures:
        """(B, N, D) hidden states of the generate pass, plus `delta` -> pixels (B, 3, H, W) in [-1, 1], differentiable.

        One-step prediction of the clean latents. Without `anchor` it is noise - velocity, with the noise of a pass without
        gradient or in eval mode; of other states it is not a picture. With `anchor`, the target latents z, it is
        z - decode_time * (velocity(hidden + delta) - velocity(hidden)): what a step from that time changes. As one linear layer
        gives the velocity, this change is linear in `delta`, whatever the hidden states are. All in float32.
        """
        hidden = hidden.float()
        velocity = self.llm2vae(hidden if delta is None else hidden + delta)
        if delta is None:
            plain = velocity.detach()
        else:
            with torch.no_grad():
                plain = self.llm2vae(hidden)
        patch, size = self.config.latent_patch_size, self._size(hidden) if anchor is None else anchor.shape[-2:]
        change, reference = unpatched(plain - velocity, patch, *size), anchor
        if reference is None:
            of_plain = unpatched(plain, patch, *size)
            reference = flow.fixed_noise(of_plain) - of_plain
        else:
            change = self.config.flow.decode_time * change
        changed = (change.detach().flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)).clamp(0, 1)
        return DecodedPictures(clamped(self.decode_latents(reference + change)), changed)

    def _size(self, hidden: Tensor) -> torch.Size:
        """(h, w), in cells, of the square picture of hidden states (B, N, D)."""
        side = int(hidden.shape[1] ** 0.5) * self.config.latent_patch_size
        return torch.Size([side, side])

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
        """Pictures (B, 3, H, W) in [-1, 1]; `guidance` is the scale of the text, the others are in the configuration.

        The scale of the starting noise was fixed in training: `temperature` is ignored. `perturb` maps the hidden states
        (B, N, D) of every step to what is added to them.
        """
        with evaluating(self):
            side = self.processor.image_size // self.autoencoder.cell
            shape = (len(inputs.tokens), self.config.vae["channels"], side, side)
            start = normal(shape, generator).to(inputs.tokens.device)
            sources = None if inputs.source_pixels is None else self.encode_target(inputs.source_pixels.flatten(0, 1))
            plain, edit = (self.config.flow.guidance(guidance, source) for source in (False, True))
            return self.decode_target(sample_latents(self, inputs, start, plain, edit, sources, perturb))

    # Adapters

    @classmethod
    def target_of(cls, layer: str) -> str:
        """Layers of the drawing set of weights have its suffix: `q_proj` is a layer of the other set alone."""
        last = super().target_of(layer)
        return f"{last}{DRAWING}" if DRAWING in layer and not last.endswith(DRAWING) else last

    def linear_layers(self) -> dict[str, list[str]]:
        table: dict[str, list[str]] = {}
        for name, module in self.language_model.named_modules():
            if isinstance(module, nn.Linear):
                table.setdefault(self.target_of(name), []).append(name)
        return table


def _parts(times: Tensor, length: int, drawn: int) -> list[tuple[Tensor, int]]:
    """(B, 1 or 2, D) embedded times -> each (B, 1, D), with its number of tokens."""
    counts = [drawn] if times.shape[1] == 1 else [length - drawn, drawn]
    return list(zip(times.split(1, 1), counts, strict=True))
