"""The conversation format of Janus.

One turn reads, with the images only in the first::

    <bos>[system prompt, blank line]<|User|>: <begin_of_image>(image tokens)<end_of_image>
    question

    <|Assistant|>: answer<eos>
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ModelError
from megaunigame.models.text.conversation import ConversationFormat
from megaunigame.models.text.sequences import TokenSequence

BEGIN_OF_IMAGE = "<begin_of_image>"
END_OF_IMAGE = "<end_of_image>"
IMAGE = "<image_placeholder>"
USER = "<|User|>: "
ASSISTANT = "\n\n<|Assistant|>:"


class JanusFormat(ConversationFormat):
    """A dropped condition is pads between the first and the last token of the request, which are read like other tokens."""

    family = "Janus"
    begin_of_image, end_of_image, image_token = BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE
    before_answer = " "

    def __init__(self, tokenizer: PreTrainedTokenizerFast, visual_tokens: int, system_prompt: str, where: str):
        super().__init__(tokenizer, visual_tokens, where)
        if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
            raise ModelError(f"The tokenizer in {where} names no bos_token or no eos_token (tokenizer_config.json).")
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.head = [self.bos, *self.encode(system_prompt + "\n\n" if system_prompt else "")]
        self.opening = self.next_opening = self.encode(USER)
        self.closing = self.encode(ASSISTANT)

    def request(self, prompt: str, source: bool) -> str:
        return ("\n" if source else "") + prompt

    def unconditional(self, sequence: TokenSequence) -> TokenSequence:
        empty = TokenSequence()
        empty.add([sequence.tokens[0], *[self.pad] * (len(sequence) - 2), sequence.tokens[-1]])
        return empty
