"""The conversation format of Janus as token ids, with labels, image slots and segments that are exact by construction.

One turn reads, with the images only in the first::

    <bos>[system prompt, blank line]<|User|>: <begin_of_image>(image tokens)<end_of_image>
    question

    <|Assistant|>: answer<eos>

Every piece is tokenised alone, so a label can never start in the middle of a token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ModelError
from megaunigame.passes import IGNORE

BEGIN_OF_IMAGE = "<begin_of_image>"
END_OF_IMAGE = "<end_of_image>"
IMAGE = "<image_placeholder>"
USER = "<|User|>: "
ASSISTANT = "\n\n<|Assistant|>:"


@dataclass
class TokenRow:
    """One row before padding; the lists have equal length."""

    tokens: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    slots: list[bool] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)

    def add(self, tokens: list[int], *, labelled: bool = False, slots: bool = False, segment: int = 0) -> None:
        self.tokens += tokens
        self.labels += tokens if labelled else [IGNORE] * len(tokens)
        self.slots += [slots] * len(tokens)
        self.segments += [segment] * len(tokens)

    def cut(self, length: int) -> None:
        """Drop everything from position `length` on."""
        for values in (self.tokens, self.labels, self.slots, self.segments):
            del values[length:]

    def __len__(self) -> int:
        return len(self.tokens)


class ConversationFormat:
    """Builds sequences for one tokenizer. Raises ModelError when a token of the format is missing from it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, visual_tokens: int, system_prompt: str, where: str):
        self.tokenizer = tokenizer
        self.visual_tokens = visual_tokens
        vocabulary = tokenizer.get_vocab()
        for name in (BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE):
            if name not in vocabulary:
                raise ModelError(f"The tokenizer in {where} has no token {name}, which Janus needs.")
        if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
            raise ModelError(f"The tokenizer in {where} names no bos_token or no eos_token (tokenizer_config.json).")
        self.begin, self.end, self.image = (vocabulary[n] for n in (BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE))
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.pad = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._head = [self.bos, *self.encode(system_prompt + "\n\n" if system_prompt else "")]
        self._user = self.encode(USER)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []

    def understand(self, images: int, turns: list[tuple[str, str]], independent: bool, limit: int) -> TokenRow:
        """At most `limit` tokens: turns that do not fit are dropped, a first one that is too long is cut at its end."""
        sequence = self._opening(images)
        for number, (question, answer) in enumerate(turns, start=1):
            segment = number if independent else 0
            before = len(sequence)
            if number > 1 and not independent:
                sequence.add(self._user)
            self._ask(sequence, question, after_images=images > 0 and (number == 1 or independent), segment=segment)
            sequence.add([*self.encode(" " + answer), self.eos], labelled=True, segment=segment)
            if len(sequence) > limit:
                sequence.cut(limit if number == 1 else before)
                break
        return sequence

    def question(self, images: int, question: str) -> TokenRow:
        """A conversation that ends where the answer begins."""
        sequence = self._opening(images)
        self._ask(sequence, question, after_images=images > 0)
        return sequence

    def generate(self, prompt: str, source: bool, limit: int) -> TokenRow:
        """A request for a picture, ending with begin-of-image; `prompt` is cut so that `limit` tokens suffice."""
        sequence = self._opening(int(source))
        closing = [*self.encode(ASSISTANT), self.begin]
        text = self.encode(("\n" if source else "") + prompt)
        sequence.add(text[: max(0, limit - len(sequence) - len(closing))])
        sequence.add(closing)
        return sequence

    def fixed_length(self, images: int) -> int:
        """Tokens of a row that no truncation can remove, one token of text included."""
        return len(self._opening(images)) + len(self.encode(ASSISTANT)) + 2

    def _opening(self, images: int) -> TokenRow:
        sequence = TokenRow()
        sequence.add(self._head)
        sequence.add(self._user)
        for _ in range(images):
            sequence.add([self.begin])
            sequence.add([self.image] * self.visual_tokens, slots=True)
            sequence.add([self.end])
        return sequence

    def _ask(self, sequence: TokenRow, question: str, *, after_images: bool, segment: int = 0) -> None:
        sequence.add(self.encode(("\n" if after_images else "") + question), segment=segment)
        sequence.add(self.encode(ASSISTANT), segment=segment)
