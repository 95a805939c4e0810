"""Base class of families whose pictures are codes: from hidden states to codes, from codes to pixels."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from megaunigame.models.base import DecodedPictures, clamped
from megaunigame.models.causal.model import CausalModel
from megaunigame.models.text.sequences import left_padded
from megaunigame.models.text.stored_codes import AcceptedCodes
from megaunigame.models.weights.identity import identity
from megaunigame.step.codes import completed
from megaunigame.step.inputs import GenerateInputs, GenerateOutput


class CodePictures(CausalModel):
    """N codes a picture; the hidden state (D,) that predicts a code gives the logits (V,) of all codes."""

    has_codes = True

    @abstractmethod
    def predict_codes(self, inputs: GenerateInputs, codes: Tensor, predict: bool) -> GenerateOutput:
        """The generate pass with given target codes (B, N); `inputs.targets` is not read."""

    @abstractmethod
    def code_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""

    @abstractmethod
    def embed_codes(self, codes: Tensor) -> Tensor:
        """(...) -> (..., D): codes as the language model reads them."""

    def unconditional(self, inputs: GenerateInputs) -> tuple[Tensor, Tensor]:
        """Embedded requests (B, P, D) without condition, and their attention (B, P), padded like `inputs`: the same request for
        all rows, with an empty prompt and no source."""
        rows, width = inputs.tokens.shape
        empty = torch.tensor([self.processor.unconditional_tokens()], device=inputs.tokens.device)
        read = left_padded(torch.ones_like(empty, dtype=torch.bool), width)
        without = left_padded(self.language_model.embed_tokens(empty), width)
        return without.expand(rows, -1, -1), read.expand(rows, -1)

    @abstractmethod
    def codebook(self) -> Tensor:
        """(V, C) float32: the vectors from which the frozen tokenizer decodes."""

    @abstractmethod
    def pixels_of(self, codes: Tensor, mean: Tensor | None = None) -> Tensor:
        """(B, N) codes -> (B, 3, H, W), not clamped; with `mean` (B, N, C) rows of the codebook, the gradient is theirs."""

    def expected_codes(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D), also in another precision than the weights -> the likeliest codes (B, N), and the mean rows of the
        codebook (B, N, C), differentiable."""
        logits = self.code_logits(hidden).float()
        return logits.argmax(-1), logits.softmax(-1) @ self.codebook()

    @property
    @abstractmethod
    def codes_per_image(self) -> int:
        """N."""

    def generate(self, inputs: GenerateInputs, predict: bool) -> GenerateOutput:
        """Predict the codes of the targets."""
        return self.predict_codes(inputs, self.target_codes(inputs), predict)

    def target_codes(self, inputs: GenerateInputs) -> Tensor:
        """(B, N): the stored codes of the targets, and those of rows that have none."""
        return completed(inputs.target_codes, inputs.target_coded, inputs.targets, self.encode_target)

    def tokenizer_identity(self) -> str:
        return identity(self.frozen.module)

    @classmethod
    def accept_codes(cls, processor: Any, tokenizer: str | None, *, partial: bool) -> None:
        processor.accepted_codes = AcceptedCodes(tokenizer, cls.reads_codes, partial)

    def use_stored_codes(self, *, partial: bool) -> None:
        self.accept_codes(self.processor, self.tokenizer_identity(), partial=partial)

    def decode(self, hidden: Tensor, delta: Tensor | None = None, anchor: Tensor | None = None) -> DecodedPictures:
        """(B, N, D) hidden states of the generate pass, plus `delta` -> pixels (B, 3, H, W) in [-1, 1], differentiable.

        Straight-through: the pixels are those of the chosen codes, the gradient that of the mean code. The chosen code is
        the likeliest; with `anchor` (B, N codes) only where the perturbation changes which is the likeliest, else the anchor.
        The head computes in float32, because bfloat16 would round a small perturbation away.
        """
        exact = hidden.float()
        codes, mean = self.expected_codes(exact if delta is None else exact + delta)
        # Also without delta, for the same calls on every rank. It costs a head on N positions, without backward.
        with torch.no_grad():
            plain = self.expected_codes(exact)[0]
        chosen = codes if anchor is None else torch.where(codes != plain, codes, anchor)
        changed = chosen != (plain if anchor is None else anchor)
        return DecodedPictures(clamped(self.pixels_of(chosen, mean).float()), changed.float().mean(1))

    @torch.no_grad()
    def decode_target(self, target: Tensor) -> Tensor:
        """(B, N) codes -> (B, 3, H, W) in [-1, 1]."""
        return self.pixels_of(target).float().clamp(-1, 1)

    def decode_each(self, codes: Tensor) -> Tensor:
        """(B, N) codes -> (B, 3, H, W) in [-1, 1], one picture after the other: how a convolution rounds depends on the batch,
        and so each picture is the same, to the last bit, in any batch."""
        return torch.cat([self.decode_target(own) for own in codes.split(1)])
