"""Conversations of families whose codes are tokens of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ModelError
from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.text.conversation import ConversationFormat
from megaunigame.models.text.sequences import TokenSequence


@dataclass(frozen=True)
class CodeSquares:
    """The square pictures of a model: generated ones, and source pictures."""

    codebook: int
    """Number of codes."""
    cell: int
    """Pixels of a code along an edge."""
    image_size: int
    """Side of a generated picture, in pixels."""
    source_size: int

    @property
    def side(self) -> int:
        """Codes along an edge of a generated picture."""
        return self.image_size // self.cell

    @property
    def source_side(self) -> int:
        return self.source_size // self.cell


class TokenFormat(ConversationFormat):
    """A request is the first token, the source, the prompt and what begins a picture; without condition, the first token and
    what begins a picture."""

    bos: int
    """The first token of a request that begins as described."""
    grid: CodeGrid
    """Of a generated picture."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, squares: CodeSquares, where: str):
        super().__init__(tokenizer, squares.source_side**2, where)
        self.squares = squares

    @property
    def after_prompt(self) -> int:
        """Positions of a generate row after its prompt: the codes with their line ends, up to the last code."""
        return self.grid.read + 1

    def require_consecutive(self, last: str, where: str) -> None:
        """Raises ModelError when the tokens from `image_token`, of code 0, to `last` are not as many as there are codes."""
        codebook, (id,) = self.squares.codebook, self.ids_of((last,), where)
        if id - self.image != codebook - 1:
            raise ModelError(
                f"The tokenizer in {where} has {self.image_token} at {self.image} and {last} at {id}; the {codebook} codes of "
                "the vision tokenizer must be consecutive. Take the tokenizer of this model."
            )

    def request(self, prompt: str, source: bool) -> str:
        return prompt

    def unconditional(self, sequence: TokenSequence) -> TokenSequence:
        """Always the same request, without the text and the source of `sequence`."""
        empty = self._request_opening(False)
        empty.add(self.request_closing)
        return empty

    def _request_opening(self, source: bool) -> TokenSequence:
        sequence = TokenSequence()
        sequence.add([self.bos])
        if source:
            self._picture(sequence)
        return sequence
