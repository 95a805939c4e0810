"""The conversation format of Emu3.

One turn reads, with the images only in the first::

    <bos>You are a helpful assistant. USER: (picture)question. ASSISTANT: answer<eos>

A picture is its size in codes and its codes, line by line::

    <|image start|>H*W<|image token|>(W codes)<|extra_200|> ... (W codes)<|extra_200|><|extra_201|><|image end|>

A request for a picture is `<bos>[picture of the source]prompt<|image start|>H*W<|image token|>`, without any template.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ModelError
from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.text.conversation import ConversationFormat
from megaunigame.models.text.sequences import TokenSequence

BEGIN_OF_IMAGE, BEGIN_OF_CODES, END_OF_IMAGE = "<|image start|>", "<|image token|>", "<|image end|>"
LINE_END, FRAME_END = "<|extra_200|>", "<|extra_201|>"
BOS, EOS, PAD = "<|extra_203|>", "<|extra_204|>", "<|endoftext|>"
SYSTEM_PROMPT = "You are a helpful assistant."
USER, ASSISTANT = "USER: ", ". ASSISTANT:"


def code_token(code: int) -> str:
    """Name of the token of a code."""
    return f"<|visual token {code:06d}|>"


class Emu3Format(ConversationFormat):
    """A dropped condition is an empty prompt, without a source."""

    family = "Emu3"
    begin_of_image, end_of_image, image_token = BEGIN_OF_IMAGE, END_OF_IMAGE, code_token(0)
    after_images = ""
    before_answer = " "

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        codebook: int,
        side: int,
        source_side: int,
        system_prompt: str,
        where: str,
    ):
        """`codebook`: number of codes. `side`, `source_side`: of generated and of source pictures, in codes."""
        super().__init__(tokenizer, source_side**2, where)
        names = (BOS, EOS, PAD, BEGIN_OF_CODES, LINE_END, FRAME_END, code_token(codebook - 1))
        named = self.ids_of(names, where)
        self.bos, self.eos, self.pad, self.begin_of_codes, self.line_end, self.frame_end, last = named
        if last - self.image != codebook - 1:
            raise ModelError(
                f"The tokenizer in {where} has {code_token(0)} at {self.image} and {code_token(codebook - 1)} at {last}; "
                f"the {codebook} codes of the vision tokenizer must be consecutive. Take the tokenizer of this model."
            )
        self.grid = CodeGrid(side, side, self.image, codebook, self.line_end)
        self.source_grid = CodeGrid(source_side, source_side, self.image, codebook, self.line_end)
        user = self.encode((" " if system_prompt else "") + USER)
        self.head = [self.bos, *self.encode(system_prompt)]
        self.opening, self.next_opening = user, self.encode(USER)
        self.closing = self.encode(ASSISTANT)

    @property
    def request_closing(self) -> list[int]:
        return self._before_codes(self.grid)

    def request(self, prompt: str, source: bool) -> str:
        return prompt

    def unconditional(self, sequence: TokenSequence) -> TokenSequence:
        """Always the same request, without the text and the source of `sequence`."""
        empty = TokenSequence()
        empty.add([self.bos, *self.request_closing])
        return empty

    def _request_opening(self, source: bool) -> TokenSequence:
        sequence = TokenSequence()
        sequence.add([self.bos])
        if source:
            self._picture(sequence)
        return sequence

    def _picture(self, sequence: TokenSequence) -> None:
        grid = self.source_grid
        sequence.add(self._before_codes(grid))
        for _ in range(grid.height):
            sequence.add([self.image] * grid.width, image=True)
            sequence.add([self.line_end])
        sequence.add([self.frame_end, self.end])

    def _before_codes(self, grid: CodeGrid) -> list[int]:
        return [self.begin, *self.encode(grid.size), self.begin_of_codes]
