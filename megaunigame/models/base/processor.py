"""What a family does with rows before they are tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from megaunigame.step.amounts import Amounts
from megaunigame.step.inputs import GenerateInputs, PassInputs, UnderstandInputs
from megaunigame.step.requests import CROP, RowRequest, StepPlan
from megaunigame.step.rows import Row


class Processor(Protocol):
    """Turns neutral rows into tensors. Runs in data-loader workers: no model, no device."""

    image_size: int
    """Side of the pictures the family generates, in pixels."""
    max_length: int
    """Longest sequence of a row, in tokens."""
    after_prompt: int
    """Tokens of a generate row that follow its prompt."""

    def collate(
        self, plan: StepPlan, pass_name: str, rows: Sequence[Row | None], terms: Sequence[int], keys: Sequence[str]
    ) -> PassInputs:
        """One row per planned row of the pass; None becomes a dummy row with count 0 and the same shapes."""
        ...

    def for_loader(self) -> Processor:
        """The same for loader workers: pictures of its inputs may be bytes (see `PassInputs.levels`) until `PassInputs.to`."""
        ...

    def check(self, row: Row, geometry: str, key: str) -> None:
        """Raises DataError for a row that `max_length` cannot hold or whose stored codes are damaged, so that another sample
        takes its place. `geometry` of its pictures; `key` of its sample, for messages."""
        ...

    def largest(self, plan: StepPlan, pass_name: str) -> PassInputs:
        """The largest legal rows of this pass: every sequence at the maximal length (the dry run uses them)."""
        ...

    @property
    def tokenizer_hash(self) -> str:
        """Names its tokenizer: 16 hexadecimal digits, equal where all texts become the same tokens."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text of a sample."""
        ...

    def lengths(self, request: RowRequest, amounts: Amounts) -> np.ndarray:
        """(n,) tokens that the rows of a request are likely to have, of samples that hold these amounts. The same everywhere:
        ranks deal rows by it."""
        ...

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens back to text, without special tokens."""
        ...

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""
        ...

    def prompt_inputs(
        self,
        images: Sequence[Sequence[Tensor]],
        questions: Sequence[str],
        earlier: Sequence[Sequence[tuple[str, str]]] | None = None,
        *,
        room: int = 0,
    ) -> UnderstandInputs:
        """Rows for `answer`: questions about `images` (uint8 (3, h, w), any number for each question), after `earlier` turns
        (question, answer) of the same conversation.

        Raises DataError for a row that leaves fewer than `room` tokens of `max_length` to its answer.
        """
        ...

    def generate_prompts(
        self, prompts: Sequence[str], sources: Sequence[Tensor | None] | None = None, geometry: str = CROP
    ) -> GenerateInputs:
        """Rows for `sample`: requests for pictures, with source pictures (uint8 (3, h, w)) in this geometry if there are any.

        `cut` of the inputs says whose text did not fit.
        """
        ...
