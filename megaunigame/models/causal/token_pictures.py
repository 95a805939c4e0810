"""Base class of families whose codes are tokens of the vocabulary: one embedding and one head for text and pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from megaunigame.models.causal.code_pictures import CodePictures
from megaunigame.models.causal.token_rows import TokenRows
from megaunigame.models.causal.token_sources import TokenSources
from megaunigame.models.vqgan.code_tokenizer import CodeTokenizer
from megaunigame.step.requests import GENERATE, UNDERSTAND


class TokenPictures(TokenSources, CodePictures):
    """Generated pictures are codes of the tokenizer that source pictures go through, too.

    A family names its `groups` embedding, lm and head.
    """

    trained_by_default = ("embedding", "lm", "head")
    passes = {UNDERSTAND: trained_by_default, GENERATE: trained_by_default}
    processor: TokenRows

    @property
    def vision_tokenizer(self) -> CodeTokenizer:
        """The frozen tokenizer."""
        return self.frozen.module  # type: ignore[no-any-return]

    @property
    def codes_per_image(self) -> int:
        """N."""
        return self.grid.count

    @torch.no_grad()
    def encode_target(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, N) codes. No gradient."""
        return self.vision_tokenizer.encode(pixels).flatten(1)

    def codebook(self) -> Tensor:
        """(V, C) float32."""
        return self.vision_tokenizer.codebook()

    def expected_codes(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D) -> likeliest codes (B, N), mean rows of the codebook (B, N, C); never all logits at once."""
        expected = self.lm_head(hidden.flatten(0, 1), ids=self.grid.ids, table=self.codebook())
        return expected.likeliest.view(hidden.shape[:2]), expected.mean.unflatten(0, hidden.shape[:2])

    def pixels_of(self, codes: Tensor, mean: Tensor | None = None) -> Tensor:
        """(B, N) codes -> (B, 3, H, W), not clamped; with `mean` (B, N, C) rows of the codebook, the gradient is theirs."""
        tokenizer, arranged = self.vision_tokenizer, self.grid.arranged
        if mean is None:
            return tokenizer.decode_codes(arranged(codes))
        return tokenizer.decode_mean(arranged(codes), arranged(mean))
