"""The conversation format of Emu3.

One turn reads, with the images only in the first::

    <bos>You are a helpful assistant. USER: (picture)question. ASSISTANT: answer<eos>

A picture is its size in codes and its codes, line by line::

    <|image start|>H*W<|image token|>(W codes)<|extra_200|> ... (W codes)<|extra_200|><|extra_201|><|image end|>

A request for a picture is `<bos>[picture of the source]prompt<|image start|>H*W<|image token|>`, without any template.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.causal.token_format import CodeSquares, TokenFormat
from megaunigame.models.text.sequences import TokenSequence

BEGIN_OF_IMAGE, BEGIN_OF_CODES, END_OF_IMAGE = "<|image start|>", "<|image token|>", "<|image end|>"
LINE_END, FRAME_END = "<|extra_200|>", "<|extra_201|>"
BOS, EOS, PAD = "<|extra_203|>", "<|extra_204|>", "<|endoftext|>"
SYSTEM_PROMPT = "You are a helpful assistant."
USER, ASSISTANT = "USER: ", ". ASSISTANT:"


def code_token(code: int) -> str:
    """Name of the token of a code."""
    return f"<|visual token {code:06d}|>"


class Emu3Format(TokenFormat):
    """A dropped condition is an empty prompt, without a source."""

    family = "Emu3"
    begin_of_image, end_of_image, image_token = BEGIN_OF_IMAGE, END_OF_IMAGE, code_token(0)
    after_images = ""
    before_answer = " "

    def __init__(self, tokenizer: PreTrainedTokenizerFast, squares: CodeSquares, system_prompt: str, where: str):
        super().__init__(tokenizer, squares, where)
        named = self.ids_of((BOS, EOS, PAD, BEGIN_OF_CODES, LINE_END, FRAME_END), where)
        self.bos, self.eos, self.pad, self.begin_of_codes, self.line_end, self.frame_end = named
        self.require_consecutive(code_token(squares.codebook - 1), where)
        self.grid, self.source_grid = (
            CodeGrid(edge, edge, self.image, squares.codebook, self.line_end) for edge in (squares.side, squares.source_side)
        )
        user = self.encode((" " if system_prompt else "") + USER)
        self.head = [self.bos, *self.encode(system_prompt)]
        self.opening, self.next_opening = user, self.encode(USER)
        self.closing = self.encode(ASSISTANT)

    @property
    def request_closing(self) -> list[int]:
        return self._before_codes(self.grid)

    def _picture(self, sequence: TokenSequence) -> None:
        grid = self.source_grid
        sequence.add(self._before_codes(grid))
        for _ in range(grid.height):
            sequence.add([self.image] * grid.width, image=True)
            sequence.add([self.line_end])
        sequence.add([self.frame_end, self.end])

    def _before_codes(self, grid: CodeGrid) -> list[int]:
        return [self.begin, *self.encode(grid.size), self.begin_of_codes]
