"""Base class of families whose codes are tokens of the vocabulary: one embedding and one head for text and pictures."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.causal.code_pictures import CodePictures
from megaunigame.models.vqgan.code_tokenizer import CodeTokenizer
from megaunigame.step.inputs import UnderstandInputs


class TokenPictures(CodePictures):
    """Source pictures are read as the embeddings of their codes. `embed_tokens` of the language model is a `TokenEmbedding`."""

    @property
    def vision_tokenizer(self) -> CodeTokenizer:
        """The frozen tokenizer."""
        return self.frozen.module  # type: ignore[no-any-return]

    @property
    @abstractmethod
    def grid(self) -> CodeGrid:
        """Layout of a generated picture in the sequence."""

    @property
    def codes_per_image(self) -> int:
        """N."""
        return self.grid.count

    def visual_tokens(self, images: Tensor, gradient_rows: slice | None = None) -> Tensor:
        """(B, I, 3, H, W) -> (B, I, N, D): embedded codes, without line ends, which the language model reads as text.

        Choosing a code has no gradient. If `images` require grad (generated pictures can), the gradient flows through the
        nearest codes (soft assignment): see `CodeTokenizer.neighbors` and `TokenEmbedding`. The values are the same. It is
        costly, so `gradient_rows` says which rows need it.
        """
        pixels, first = images.flatten(0, 1), self.grid.first
        if not (images.requires_grad and torch.is_grad_enabled()):
            tokens = self.language_model.embed_tokens(self.vision_tokenizer.encode(pixels).flatten(1) + first)
            return tokens.unflatten(0, images.shape[:2])
        rows, per_row = slice(0, len(images)) if gradient_rows is None else gradient_rows, images.shape[1]
        at = slice(rows.start * per_row, rows.stop * per_row)
        near, shares = (each.flatten(1, 2) for each in self.vision_tokenizer.neighbors(pixels[at]))
        others = (pixels[: at.start], pixels[at.stop :])
        before, after = (self.vision_tokenizer.encode(some).flatten(1) if len(some) else near[:0, :, 0] for some in others)
        codes = torch.cat([before, near[..., 0], after])
        return self.language_model.embed_tokens(codes + first, near + first, shares, at).unflatten(0, images.shape[:2])

    def question_tokens(self, inputs: UnderstandInputs) -> Tensor:
        """(B, I, N, D): the visual tokens of the images of an understand pass."""
        return self.visual_tokens(inputs.images, inputs.gradient_rows)

    def code_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V): logits of the codes only."""
        return self.lm_head(hidden, ids=self.grid.ids)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """(...) -> (..., D): codes as the language model reads them."""
        return self.language_model.embed_tokens(codes + self.grid.first)

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

    def as_source(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> resized to source pictures, in [-1, 1]; differentiable."""
        size = self.processor.source_size
        if pixels.shape[-1] != size:
            pixels = F.interpolate(pixels, (size, size), mode="bilinear")
        return pixels
