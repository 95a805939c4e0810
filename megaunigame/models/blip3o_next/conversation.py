"""The conversation format of BLIP3o-NEXT: Qwen's chat template, and pictures as codes.

One turn reads, with the pictures only in the first, each as its codes without any token around them::

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    (codes)
    question<|im_end|>
    <|im_start|>assistant
    answer<|im_end|>

A request for a picture ends with `<|im_start|>assistant`, a new line, `<im_start>` and `<S0>`, the token of the scale; the
codes of the picture follow. Without condition it has no text and no source.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from megaunigame.models.causal.code_grid import CodeGrid
from megaunigame.models.causal.token_format import CodeSquares, TokenFormat
from megaunigame.models.text.conversation import ConversationFormat
from megaunigame.models.text.sequences import TokenSequence

BEGIN_OF_IMAGE, END_OF_IMAGE = "<im_start>", "<im_end>"
TURN_START, TURN_END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SYSTEM_PROMPT = "You are a helpful assistant."
REQUEST = "Please generate image based on the following caption: "


def code_token(code: int) -> str:
    """Name of the token of a code."""
    return f"<I{code}>"


def scale_token(scale: int) -> str:
    """Name of the token of a scale; 0 is the one that the release trains."""
    return f"<S{scale}>"


class Blip3oNextFormat(TokenFormat):
    """A caption follows `REQUEST`; an instruction about a source picture has no prefix."""

    family = "BLIP3o-NEXT"
    begin_of_image, end_of_image, image_token = BEGIN_OF_IMAGE, END_OF_IMAGE, code_token(0)

    def __init__(self, tokenizer: PreTrainedTokenizerFast, squares: CodeSquares, system_prompt: str, where: str):
        super().__init__(tokenizer, squares, where)
        _, self.eos, self.scale = self.ids_of((TURN_START, TURN_END, scale_token(0)), where)
        self.pad = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.require_consecutive(code_token(squares.codebook - 1), where)
        self.grid = CodeGrid(squares.source_side, squares.source_side, self.image, squares.codebook)
        self.head = self.encode(f"{TURN_START}system\n{system_prompt}{TURN_END}\n" if system_prompt else "")
        self.opening = self.encode(f"{TURN_START}user\n")
        self.next_opening = self.encode(f"\n{TURN_START}user\n")
        self.closing = self.encode(f"{TURN_END}\n{TURN_START}assistant\n")

    @property
    def request_closing(self) -> list[int]:
        """The scale is the last token: its hidden state predicts the first code, and is the first of the condition."""
        return [*self.closing, self.begin, self.scale]

    def request(self, prompt: str, source: bool) -> str:
        return f"\n{prompt.strip()}" if source else REQUEST + prompt.strip()

    def _request_opening(self, source: bool) -> TokenSequence:
        return ConversationFormat._request_opening(self, source)

    def _picture(self, sequence: TokenSequence) -> None:
        sequence.add([self.image] * self.visual_tokens, image=True)
