"""Base class of families whose codes are tokens of the vocabulary, drawn one by one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.models.causal.codes import CodeModel
from megaunigame.models.causal.token_pictures import TokenPictures
from megaunigame.models.emphasis import emphasized
from megaunigame.step.inputs import GenerateInputs, GenerateOutput, Taps


class TokenCodeModel(TokenPictures, CodeModel):
    """Teacher forcing and sampling in the order of the codes, with line ends where the family has them."""

    @property
    def calls_per_sample(self) -> int:
        """One per code, and one per line end that comes before a code."""
        return self.grid.read + 1

    def predict_codes(self, inputs: GenerateInputs, codes: Tensor, predict: bool) -> GenerateOutput:
        """The generate pass with given target codes (B, N), teacher forced; `inputs.targets` is not read.

        The loss is on the codes, over the whole vocabulary. Line ends are read, not learned.
        """
        grid = self.grid
        embeds = self._embed_with(inputs, grid.tokens(codes)[:, : grid.read])
        attention = F.pad(inputs.attention, (0, grid.read), value=True)
        tap = self._prompt_tap(inputs, drawn=grid.places_before(grid.count - 1))
        # The state at a position predicts the next token: from the last token of the prompt to the last but one code.
        lengths = self.lengths(inputs, grid.read)
        read = self._read(embeds, attention, front_padding=inputs.front_padding, tap=tap, lengths=lengths)
        states = read[:, -grid.read - 1 :]
        hidden = states.index_select(1, grid.places(states.device))
        scored = self._scores(hidden.flatten(0, 1), (codes + grid.first).flatten())
        losses = emphasized(scored.losses.view(codes.shape), inputs.emphasis)
        return GenerateOutput(
            loss_sum=torch.where(inputs.counts > 0, losses.sum(1), 0.0),
            hidden=hidden,
            target=codes,
            predictions=self.code_logits(hidden).argmax(-1) if predict else None,
            attention=None if tap is None else tap.shares(),
        )

    def _prompt_text(self, inputs: GenerateInputs, taps: Taps) -> Tensor:
        """(B, S): text before the picture, without the line ends of a source picture."""
        text = super()._prompt_text(inputs, taps)
        return text if self.grid.line_end is None else text & (inputs.tokens != self.grid.line_end)

    @property
    def lines(self) -> tuple[int, Tensor | None]:
        """Only codes are drawn; line ends are inserted."""
        if self.grid.line_end is None:
            return 0, None
        embed_tokens = self.language_model.embed_tokens
        return self.grid.width, embed_tokens(torch.tensor(self.grid.line_end, device=embed_tokens.weight.device))
