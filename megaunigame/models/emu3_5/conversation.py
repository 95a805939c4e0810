"""The sequences of Emu3.5.

A conversation is one line, with the pictures right after `USER: `; the official templates have a task, and none is public for
understanding, so it has none here::

    <bos>You are a helpful assistant. USER: (pictures)question ASSISTANT: <bss>answer<ess><eos>

A request for a picture names the task `t2i`, or `x2i` where it has a source::

    <bos>You are a helpful assistant for x2i task. USER: (source)prompt ASSISTANT: <bss>(picture)

Without condition it has neither task nor prompt, and the source stays. A picture is its size in codes and its codes::

    <|image start|>H*W<|image token|>(W codes)<|extra_200|> ... (W codes)<|image end|>

<bos>, <eos>, <bss>, <ess> are the tokens 203, 204, 100 and 101 of those called `<|extra_N|>`.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.causal.token_format import CodeSquares, TokenFormat
from megaunigame.models.text.plain_text import PlainTokens
from megaunigame.models.text.sequences import TokenSequence

BEGIN_OF_IMAGE, BEGIN_OF_CODES, END_OF_IMAGE = "<|image start|>", "<|image token|>", "<|image end|>"
LINE_END = "<|extra_200|>"
BEGIN_OF_ANSWER, END_OF_ANSWER = "<|extra_100|>", "<|extra_101|>"
BOS, EOS, PAD = "<|extra_203|>", "<|extra_204|>", "<|endoftext|>"
SYSTEM_PROMPT = "You are a helpful assistant."
TEXT_TO_IMAGE, WITH_SOURCE = "t2i", "x2i"
USER, ASSISTANT = "USER:", " ASSISTANT: "


def code_token(code: int) -> str:
    """Name of the token of a code."""
    return f"<|visual token {code:06d}|>"


def for_task(system_prompt: str, task: str) -> str:
    """The system prompt of a request: its last sentence ends with the task. An empty prompt stays empty."""
    return system_prompt and f"{system_prompt.removesuffix('.')} for {task} task."


class Emu3p5Format(TokenFormat):
    """The blank between `USER:` and a text is the first character of the text's first token; before a picture it is a token."""

    family = "Emu3.5"
    begin_of_image, end_of_image, image_token = BEGIN_OF_IMAGE, END_OF_IMAGE, code_token(0)
    keeps_source = True

    def __init__(self, tokenizer: PreTrainedTokenizerFast, squares: CodeSquares, system_prompt: str, where: str):
        super().__init__(tokenizer, squares, where)
        named = self.ids_of((BOS, EOS, PAD, BEGIN_OF_CODES, LINE_END, BEGIN_OF_ANSWER, END_OF_ANSWER), where)
        self.bos, self.eos, self.pad, self.begin_of_codes, line_end, begin_of_answer, self.end_of_answer = named
        self.require_consecutive(code_token(squares.codebook - 1), where)
        self.grid, self.source_grid = (
            CodeGrid(edge, edge, self.image, squares.codebook, line_end, last_line_ends=False)
            for edge in (squares.side, squares.source_side)
        )
        self.head = [self.bos]
        self.opening, self.next_opening = self._said_before(system_prompt), self.encode(USER)
        self.asking = {
            source: self._said_before(for_task(system_prompt, task))
            for source, task in ((False, TEXT_TO_IMAGE), (True, WITH_SOURCE))
        }
        self.closing = [*self.encode(ASSISTANT), begin_of_answer]

    @property
    def request_closing(self) -> list[int]:
        return [*self.closing, *self._before_codes(self.grid)]

    def request(self, prompt: str, source: bool) -> str:
        return ("" if source else " ") + prompt.strip()

    def unconditional(self, sequence: TokenSequence) -> TokenSequence:
        """The request without task and text; with a source where `sequence` has one."""
        return self.without_condition(any(sequence.image))

    def without_condition(self, source: bool) -> TokenSequence:
        """The request without task and text."""
        sequence = self._begun(self.opening, int(source), blank=True)
        sequence.add(self.request_closing)
        return sequence

    def _said_before(self, system_prompt: str) -> list[int]:
        """System prompt and `USER:` are one piece."""
        return self.encode(f"{system_prompt} {USER}" if system_prompt else USER)

    def _opening(self, images: int) -> TokenSequence:
        return self._begun(self.opening, images, blank=images > 0)

    def _request_opening(self, source: bool) -> TokenSequence:
        return self._begun(self.asking[source], int(source), blank=source)

    def _begun(self, opening: Sequence[int], images: int, *, blank: bool) -> TokenSequence:
        """The sequence up to the text; `blank`: whether `USER:` and a separate blank come before what follows."""
        sequence = TokenSequence()
        sequence.add([*self.head, *opening, *(self.encode(" ") if blank else [])])
        for _ in range(images):
            self._picture(sequence)
        return sequence

    def _picture(self, sequence: TokenSequence) -> None:
        grid = self.source_grid
        sequence.add(self._before_codes(grid))
        for line in range(grid.height):
            sequence.add([grid.line_end] if line and grid.line_end is not None else [])
            sequence.add([self.image] * grid.width, image=True)
        sequence.add([self.end])

    def _before_codes(self, grid: CodeGrid) -> list[int]:
        return [self.begin, *self.encode(grid.size), self.begin_of_codes]

    def _asked(self, question: str, follows_images: bool) -> PlainTokens:
        return self.plain.encode(("" if follows_images else " ") + question.strip())

    def _answer(self, answer: str) -> PlainTokens:
        text = self.plain.encode(answer)
        return PlainTokens([*text.tokens, self.end_of_answer, self.eos], text.escaped)
