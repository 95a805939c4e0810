"""Base class of families whose pictures are codes, drawn one by one by the language model."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.models.base import evaluating
from megaunigame.models.causal.code_pictures import CodePictures
from megaunigame.models.causal.decoding import CachedReader, draw_codes, picker
from megaunigame.models.emphasis import emphasized
from megaunigame.step.inputs import GenerateInputs, GenerateOutput


class CodeModel(CodePictures):
    """The hidden state (D,) before a code predicts it."""

    def predict_codes(self, inputs: GenerateInputs, codes: Tensor, predict: bool) -> GenerateOutput:
        """The generate pass with given target codes (B, N), teacher forced; `inputs.targets` is not read."""
        # The last code is predicted, never read.
        embeds = torch.cat([self.embed(inputs), self.embed_codes(codes[:, :-1])], dim=1)
        attention = F.pad(inputs.attention, (0, codes.shape[1] - 1), value=True)
        tap = self._prompt_tap(inputs, drawn=range(codes.shape[1] - 1))
        hidden = self._read(embeds, attention, front_padding=inputs.front_padding, tap=tap)[:, -codes.shape[1] :]
        logits = self.code_logits(hidden).float()
        losses = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view(codes.shape)
        loss = emphasized(losses, inputs.emphasis).sum(1)
        return GenerateOutput(
            loss_sum=torch.where(inputs.counts > 0, loss, 0.0),
            hidden=hidden,
            target=codes,
            predictions=logits.argmax(-1) if predict else None,
            attention=None if tap is None else tap.shares(),
        )

    @property
    def lines(self) -> tuple[int, Tensor | None]:
        """Codes of a line, and the embedding (D,) read after each line; (0, None): none."""
        return 0, None

    @property
    def calls_per_sample(self) -> int:
        """One per code."""
        return self.codes_per_image

    @torch.no_grad()
    def sample_codes(
        self,
        inputs: GenerateInputs,
        *,
        guidance: float,
        pick: Callable[[Tensor], Tensor],
        perturb: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """(B, N) codes; `pick` turns guided logits (B, V) into codes (B,). Guidance 1 runs the conditional rows only."""
        with evaluating(self):
            embeds, attention = self.embed(inputs), inputs.attention
            if guidance != 1:
                without, read = self.unconditional(inputs)
                embeds, attention = torch.cat([embeds, without]), torch.cat([attention, read])
            line, line_end = self.lines
            return draw_codes(
                CachedReader(self.language_model, attention, flash=self._flash, leave_point=self.leave_point),
                embeds,
                self.codes_per_image,
                embed=self.embed_codes,
                score=self.code_logits,
                pick=pick,
                guidance=guidance,
                perturb=perturb,
                line=line,
                line_end=line_end,
            )

    def sample(
        self,
        inputs: GenerateInputs,
        *,
        guidance: float,
        temperature: float,
        generator: torch.Generator,
        perturb: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] with classifier-free guidance; temperature 0 takes the likeliest codes.

        `perturb` maps the embedding (B, 1, D) of the last drawn code to what is added to it before it is read.
        """
        pick = picker(temperature, generator)
        return self.decode_target(self.sample_codes(inputs, guidance=guidance, pick=pick, perturb=perturb))
