"""Drawing with BAGEL: from noise to latents, step by step, guided by the text and by a source picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from megaunigame.models.bagel import flow
from megaunigame.models.bagel.autoencoder import patched, unpatched
from megaunigame.models.bagel.configuration import BagelConfig
from megaunigame.models.bagel.guiding import Guidance, guided
from megaunigame.models.bagel.processor import BagelProcessor
from megaunigame.models.bagel.spans import Layout, without_last_text, without_sources
from megaunigame.step.inputs import GenerateInputs


class Drawer(Protocol):
    """What sampling needs of the model."""

    config: BagelConfig
    processor: BagelProcessor
    leave_point: Callable[[], None]
    llm2vae: Any

    def embed(self, inputs: GenerateInputs) -> Tensor:
        """(B, S, D)."""
        ...

    def clean_tokens(self, sources: Tensor, rows: int) -> Tensor:
        """Latents of source pictures, with their places."""
        ...

    def layout(self, inputs: GenerateInputs, attention: Tensor, clean: Tensor | None, drawn: int) -> Layout:
        """How requests are read."""
        ...

    def drawn_states(
        self, embeds: Tensor, noisy: Tensor, t: Tensor, clean: Tensor | None, size: torch.Size, layout: Layout
    ) -> Tensor:
        """(B, N, D) hidden states of noisy latent tokens."""
        ...


def sample_latents(
    model: Drawer,
    inputs: GenerateInputs,
    start: Tensor,
    plain: Guidance,
    edit: Guidance,
    sources: Tensor | None = None,
    perturb: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Noise (B, C, h, w) -> latents (B, C, h, w). `plain`, `edit`: guidance of rows without and with a source picture;
    `sources`: latents of these (B * J, C, h', w'). `perturb`: hidden states (B, N, D) -> what is added to them in every step.

    One call of the language model per step: rows with all conditions and, where a step is guided, the same without their
    last text and, if there are source pictures, without these. How many are read depends on the plan, never on the rows.
    """
    size, patch, rows = start.shape[-2:], model.config.latent_patch_size, len(start)
    embeds = model.embed(inputs)
    clean = None if sources is None else model.clean_tokens(sources, rows)
    pictures = ((inputs.tokens == model.processor.format.begin) & inputs.attention).sum(1)
    edited = (pictures > 1).view(-1, 1, 1)  # the last one is drawn
    layouts = contexts(model, inputs, clean, start.shape[2] * start.shape[3] // patch**2)

    def velocity(latents: Tensor, t: float) -> Tensor:
        model.leave_point()
        copies = 1
        if plain.at(t) or (sources is not None and edit.at(t)):
            copies = 2 if sources is None else 3
        tokens, noisy = (each.repeat(copies, 1, 1) for each in (embeds, patched(latents, patch)))
        read = None if clean is None else clean.repeat(copies, 1, 1, 1)
        layout = Layout(*(torch.cat(parts) for parts in zip(*layouts[:copies], strict=True)))
        times = torch.full((copies * rows,), t, device=latents.device)
        hidden = model.drawn_states(tokens, noisy, times, read, size, layout)
        if perturb is not None:
            hidden[:rows] += perturb(hidden[:rows]).to(hidden.dtype)
        found = model.llm2vae(hidden).float()
        if copies == 1:
            return unpatched(found, patch, *size)
        whole, textless, *without = found.chunk(copies)
        pictureless = without[0] if without else whole
        of_kind = [guided(whole, textless, pictureless, kind) if kind.at(t) else whole for kind in (plain, edit)]
        return unpatched(torch.where(edited, of_kind[1], of_kind[0]), patch, *size)

    return flow.solve(velocity, start, flow.sampling_times(model.config.flow.sample_points, model.config.flow.sample_shift))


def contexts(model: Drawer, inputs: GenerateInputs, clean: Tensor | None, drawn: int) -> list[Layout]:
    """Requests with all conditions, without the last text, and without source pictures. `drawn`: latent tokens to draw."""
    tokens, attention, conversation = inputs.tokens, inputs.attention, model.processor.format
    textless = without_last_text(tokens, attention, conversation.bos)
    pictureless = without_sources(tokens, attention, conversation.begin, conversation.end)
    return [model.layout(inputs, kept, clean, drawn) for kept in (attention, textless, pictureless)]
