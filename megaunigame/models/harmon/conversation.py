"""The conversation format of Harmon: Qwen's chat template, a picture as plain tokens without a begin or an end.

One turn reads, with the images only in the first::

    <|im_start|>user
    (picture tokens)
    question<|im_end|>
    <|im_start|>assistant
    answer<|im_end|>

A request for a picture ends with `<|im_start|>assistant` and a new line; the tokens of the picture follow.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from megaunigame.models.text.conversation import ConversationFormat
from megaunigame.models.text.sequences import TokenSequence

TURN_START, TURN_END, IMAGE = "<|im_start|>", "<|im_end|>", "<|image_pad|>"
REQUEST = "Generate an image: "
UNCONDITIONAL = "Generate an image."
"""Prompt of a row whose condition was dropped, in training and in classifier-free guidance."""


class HarmonFormat(ConversationFormat):
    """A caption follows `Generate an image: `; an instruction about a source picture has no prefix. `<|image_pad|>`, a token of
    Qwen's, holds the places of pictures; the official code has an id outside of the vocabulary there."""

    family = "Harmon"
    begin_of_image = end_of_image = image_token = IMAGE

    def __init__(self, tokenizer: PreTrainedTokenizerFast, visual_tokens: int, system_prompt: str, where: str):
        super().__init__(tokenizer, visual_tokens, where)
        _, self.eos = self.ids_of((TURN_START, TURN_END), where)
        self.pad = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.head = self.encode(f"{TURN_START}system\n{system_prompt}{TURN_END}\n" if system_prompt else "")
        self.opening = self.encode(f"{TURN_START}user\n")
        self.next_opening = self.encode(f"\n{TURN_START}user\n")
        self.closing = self.encode(f"{TURN_END}\n{TURN_START}assistant\n")

    @property
    def request_closing(self) -> list[int]:
        """Nothing comes between a request and the tokens of its picture."""
        return self.closing

    def request(self, prompt: str, source: bool) -> str:
        return f"\n{prompt.strip()}" if source else REQUEST + prompt.strip()

    def unconditional(self, sequence: TokenSequence) -> TokenSequence:
        """Always the same request, without the text and the source of `sequence`."""
        empty = self._opening(images=0)
        empty.add([*self.encode(UNCONDITIONAL), *self.closing])
        return empty

    def _picture(self, sequence: TokenSequence) -> None:
        sequence.add([self.image] * self.visual_tokens, image=True)
