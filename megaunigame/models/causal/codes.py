"""Base class of families whose pictures are codes, drawn one by one by the language model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.models.base import Generators, evaluating
from megaunigame.models.causal.code_pictures import CodePictures
from megaunigame.models.causal.decoding import CachedReader, draw_codes, picker
from megaunigame.models.causal.own_rows import own_row
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
        lengths = self.lengths(inputs, codes.shape[1] - 1)
        read = self._read(embeds, attention, front_padding=inputs.front_padding, tap=tap, lengths=lengths)
        hidden = read[:, -codes.shape[1] :]
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
        lockstep: bool = True,
    ) -> Tensor:
        """(B, N) codes; `pick` turns guided logits (B, V) into codes (B,). Guidance 1 runs the conditional rows only.

        `lockstep` False, which takes a Picker and no `perturb`: further calls settle the choices that rounding could change, of
        a model in float32.
        """
        inputs = inputs if lockstep else self.with_own_codes(inputs)
        with evaluating(self):
            embeds, attention = self._prompts(inputs, guidance)
            line, line_end = self.lines
            return draw_codes(
                self._reader(attention),
                embeds,
                self.codes_per_image,
                embed=self.embed_codes,
                score=self.code_logits,
                pick=pick,
                guidance=guidance,
                perturb=perturb,
                line=line,
                line_end=line_end,
                alone=None if lockstep or embeds.dtype != torch.float32 else partial(self._logits_alone, inputs, guidance),
            )

    def _prompts(self, inputs: GenerateInputs, guidance: float) -> tuple[Tensor, Tensor]:
        """Embedded requests (B, P, D), with those without condition after them unless guidance is 1, and their attention."""
        embeds, attention = self.embed(inputs), inputs.attention
        if guidance == 1:
            return embeds, attention
        without, read = self.unconditional(inputs)
        return torch.cat([embeds, without]), torch.cat([attention, read])

    def _reader(self, attention: Tensor) -> CachedReader:
        return CachedReader(self.language_model, attention, flash=self._flash, leave_point=self.leave_point)

    def _logits_alone(self, inputs: GenerateInputs, guidance: float, row: int, codes: Tensor) -> Tensor:
        """(1 or 2, V): logits after the request of a row and its `codes` (1, n), computed by itself."""
        embeds, attention = self._prompts(own_row(inputs, row), guidance)
        width, line_end = self.lines
        read = []
        for line in self.embed_codes(codes).split(width or self.codes_per_image, dim=1):
            ended = line_end is not None and line.shape[1] == width
            read += [line, line_end.view(1, 1, -1)] if ended and line_end is not None else [line]
        drawn = torch.cat(read, dim=1).to(embeds.dtype).expand(len(embeds), -1, -1)
        attention = F.pad(attention, (0, drawn.shape[1]), value=True)
        return self.code_logits(self._reader(attention).prompt(torch.cat([embeds, drawn], dim=1)))

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
        """Pictures (B, 3, H, W) in [-1, 1] with classifier-free guidance; temperature 0 takes the likeliest codes.

        `perturb` maps the embedding (B, 1, D) of the last drawn code to what is added to it before it is read.
        """
        pick = picker(temperature, generator)
        codes = self.sample_codes(inputs, guidance=guidance, pick=pick, perturb=perturb, lockstep=lockstep)
        if not lockstep:
            pick.check_finite()
        return self.decode_each(codes)
