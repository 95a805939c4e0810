"""Base class of families whose codes are tokens of the vocabulary: one embedding and one head for text and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.causal.code_pictures import CodePictures
from megaunigame.models.causal.model import with_pictures
from megaunigame.models.causal.token_rows import TokenRows
from megaunigame.models.vqgan.code_tokenizer import CodeTokenizer
from megaunigame.step.codes import completed
from megaunigame.step.inputs import GenerateInputs, UnderstandInputs
from megaunigame.step.requests import GENERATE, UNDERSTAND


class TokenPictures(CodePictures):
    """Source pictures are read as the embeddings of their codes. `embed_tokens` of the language model is a `TokenEmbedding`.

    A family names its `groups` embedding, lm and head.
    """

    trained_by_default = ("embedding", "lm", "head")
    passes = {UNDERSTAND: trained_by_default, GENERATE: trained_by_default}
    reads_codes = True
    processor: TokenRows

    @property
    def vision_tokenizer(self) -> CodeTokenizer:
        """The frozen tokenizer."""
        return self.frozen.module  # type: ignore[no-any-return]

    @property
    def grid(self) -> CodeGrid:
        """Layout of a generated picture in the sequence."""
        return self.processor.format.grid

    @property
    def codes_per_image(self) -> int:
        """N."""
        return self.grid.count

    def visual_tokens(self, images: Tensor, gradient_rows: slice | None = None) -> Tensor:
        """(B, I, 3, H, W) -> (B, I, N, D): embedded codes, without line ends, which the language model reads as text.

        `gradient_rows`: as in `UnderstandInputs`.
        """
        tokens, soft = self._tokens_of(images, gradient_rows, None, [])
        return self.language_model.embed_tokens(tokens, *soft)

    def embed(self, inputs: UnderstandInputs | GenerateInputs) -> Tensor:
        """(B, S, D): embedded tokens, those of the codes of valid images at image positions."""
        return self._embed_with(inputs, inputs.tokens[:, :0])

    def _embed_with(self, inputs: UnderstandInputs | GenerateInputs, read: Tensor) -> Tensor:
        """(B, S + R, D): the same, followed by the embedded tokens `read` (B, R). One call of the embedding for all, because a
        partitioned one is gathered in every call."""
        if inputs.images is None:
            return self.language_model.embed_tokens(torch.cat([inputs.tokens, read], dim=1))
        gradient_rows = inputs.gradient_rows if isinstance(inputs, UnderstandInputs) else None
        seen, soft = self._tokens_of(inputs.images, gradient_rows, inputs.source_codes, inputs.source_coded)
        tokens = [seen, inputs.tokens, read]
        embedded = self.language_model.embed_tokens(torch.cat([each.flatten() for each in tokens]), *_flat(seen, *soft))
        parts = embedded.split([each.numel() for each in tokens])
        visual, embeds, after = (part.unflatten(0, each.shape) for part, each in zip(parts, tokens, strict=True))
        return torch.cat([with_pictures(embeds, visual, inputs), after], dim=1)

    def _tokens_of(
        self, images: Tensor, gradient_rows: slice | None, stored: Tensor | None, coded: Sequence[bool]
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """(B, I, N): the tokens of the codes of images (B, I, 3, H, W), some rows of which have `stored` codes (B, I, N); and,
        when a gradient is wanted, what else `TokenEmbedding` takes.

        Choosing a code has no gradient. If `images` require grad (generated pictures can), the gradient flows through the
        nearest codes (soft assignment): see `CodeTokenizer.neighbors` and `TokenEmbedding`. The values are the same. It is
        costly, so `gradient_rows` says which rows need it; they are encoded.
        """
        first = self.grid.first

        def codes_of(part: slice) -> Tensor:
            known = None if stored is None else stored[part]
            return completed(known, coded[part], images[part], self._image_codes)

        if not (images.requires_grad and torch.is_grad_enabled()):
            return codes_of(slice(0, len(images))) + first, ()
        at = slice(0, len(images)) if gradient_rows is None else gradient_rows
        each_row = (-1, images.shape[1])
        near, shares = (
            each.flatten(1, 2).unflatten(0, each_row) for each in self.vision_tokenizer.neighbors(images[at].flatten(0, 1))
        )
        nearest = near[..., 0]
        others = (slice(0, at.start), slice(at.stop, len(images)))
        before, after = (codes_of(part) if part.start < part.stop else nearest[:0] for part in others)
        return torch.cat([before, nearest, after]) + first, (near + first, shares, at)

    def _image_codes(self, images: Tensor) -> Tensor:
        """(B, I, 3, H, W) -> (B, I, N) codes."""
        return self.vision_tokenizer.encode(images.flatten(0, 1)).flatten(1).unflatten(0, images.shape[:2])

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


def _flat(tokens: Tensor, *soft: Any) -> tuple[Any, ...]:
    """What `TokenEmbedding` takes next to `tokens` (B, I, N), for tokens in one line, which begins with these."""
    if not soft:
        return ()
    near, shares, at = soft
    length = tokens[0].numel()
    return near.flatten(0, 2), shares.flatten(0, 2), slice(at.start * length, at.stop * length)
