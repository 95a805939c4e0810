"""Base class of families that read pictures as codes, which are tokens of the vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.causal.model import CausalModel, with_pictures
from megaunigame.models.vqgan.code_tokenizer import CodeEncoder
from megaunigame.step.codes import completed
from megaunigame.step.inputs import GenerateInputs, InputsT, UnderstandInputs


class TokenSources(CausalModel):
    """Source pictures are read as the embeddings of their codes. `embed_tokens` of the language model is a `TokenEmbedding`."""

    reads_codes = True

    @property
    def vision_tokenizer(self) -> CodeEncoder:
        """The frozen tokenizer."""
        return self.frozen.module  # type: ignore[no-any-return]

    @property
    def grid(self) -> CodeGrid:
        """Layout of a generated picture in the sequence."""
        return self.processor.format.grid  # type: ignore[attr-defined,no-any-return]

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

    def with_own_codes(self, inputs: InputsT) -> InputsT:
        """See `CausalModel`. Pictures that have stored codes keep them."""
        assert isinstance(inputs, UnderstandInputs | GenerateInputs)
        if inputs.images is None or inputs.source_coded:
            return inputs
        each = [self._image_codes(own.unsqueeze(0).unsqueeze(0)) for row in inputs.images for own in row]
        codes = torch.cat(each).view(*inputs.images.shape[:2], -1)
        return dataclasses.replace(inputs, source_codes=codes, source_coded=[True] * len(codes))

    def _image_codes(self, images: Tensor) -> Tensor:
        """(B, I, 3, H, W) -> (B, I, N) codes."""
        return self.vision_tokenizer.encode(images.flatten(0, 1)).flatten(1).unflatten(0, images.shape[:2])

    def code_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V): logits of the codes only."""
        return self.lm_head(hidden, ids=self.grid.ids)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """(...) -> (..., D): codes as the language model reads them."""
        return self.language_model.embed_tokens(codes + self.grid.first)

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
