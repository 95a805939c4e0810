"""The conversation format of OpenUni: Qwen's chat template as InternVL uses it, one tile per picture.

One turn reads, with the images only in the first::

    <|im_start|>user
    <img>(context tokens)</img>
    question<|im_end|>
    <|im_start|>assistant
    answer<|im_end|>

A request for a picture ends with `<|im_start|>assistant`, a new line and `<img>`; the meta queries follow.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from megaunigame.models.text.conversation import ConversationFormat
from megaunigame.models.text.sequences import TokenSequence

BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE = "<img>", "</img>", "<IMG_CONTEXT>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
REQUEST = "Generate an image: "
UNCONDITIONAL = "Generate an image."
"""Prompt of a row whose condition was dropped, in training and in classifier-free guidance."""


class OpenUniFormat(ConversationFormat):
    """A caption follows `Generate an image: `; an instruction about a source picture has no prefix."""

    family = "OpenUni"
    begin_of_image, end_of_image, image_token = BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE
    between_images = "\n"

    def __init__(self, tokenizer: PreTrainedTokenizerFast, visual_tokens: int, system_prompt: str, where: str):
        super().__init__(tokenizer, visual_tokens, where)
        _, self.eos = self.ids_of((TURN_START, TURN_END), where)
        self.pad = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.head = self.encode(f"{TURN_START}system\n{system_prompt}{TURN_END}\n" if system_prompt else "")
        self.opening = self.encode(f"{TURN_START}user\n")
        self.next_opening = self.encode(f"\n{TURN_START}user\n")
        self.closing = self.encode(f"{TURN_END}\n{TURN_START}assistant\n")

    def request(self, prompt: str, source: bool) -> str:
        return f"\n{prompt.strip()}" if source else REQUEST + prompt.strip()

    def unconditional(self, sequence: TokenSequence) -> TokenSequence:
        """Always the same request, without the text and the source of `sequence`."""
        empty = self._opening(images=0)
        empty.add([*self.encode(UNCONDITIONAL), *self.closing, self.begin])
        return empty
