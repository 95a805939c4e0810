"""Conversations as token ids, with exact labels, image positions and segments.

Every piece is tokenized alone, so a label never starts inside a token. A family defines the pieces::

    head opening [images] question closing answer eos   next_opening question closing answer eos   ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from megaunigame.errors import ModelError
from megaunigame.models.text.sequences import TokenSequence


class ConversationFormat(ABC):
    """Builds sequences for one tokenizer. Raises ModelError when a token of the format is missing from it."""

    family: str
    begin_of_image: str
    end_of_image: str
    image_token: str
    between_images: str = ""
    after_images: str = "\n"
    """Before a question that follows images."""
    before_answer: str = ""

    head: list[int]
    """Before the first turn."""
    opening: list[int]
    """Before the first question."""
    next_opening: list[int]
    """Before every other question."""
    closing: list[int]
    """Between question and answer."""
    eos: int
    """Ends an answer."""
    pad: int

    def __init__(self, tokenizer: PreTrainedTokenizerFast, visual_tokens: int, where: str):
        self.tokenizer = tokenizer
        self.visual_tokens = visual_tokens
        self.begin, self.end, self.image = self.ids_of((self.begin_of_image, self.end_of_image, self.image_token), where)

    def ids_of(self, names: Sequence[str], where: str) -> list[int]:
        """Ids of special tokens. Raises ModelError for one the tokenizer (of the folder `where`) does not have."""
        vocabulary = self.tokenizer.get_vocab()
        for name in names:
            if name not in vocabulary:
                raise ModelError(f"The tokenizer in {where} has no token {name}, which {self.family} needs.")
        return [vocabulary[name] for name in names]

    @abstractmethod
    def request(self, prompt: str, source: bool) -> str:
        """The text after the source (if any) in a request for a picture."""

    @abstractmethod
    def unconditional(self, sequence: TokenSequence) -> TokenSequence:
        """The request `sequence` without its condition, text and source picture alike."""

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []

    def understand(self, images: int, turns: list[tuple[str, str]], independent: bool, limit: int) -> TokenSequence:
        """At most `limit` tokens: turns that do not fit are dropped, a first one that is too long is cut at its end."""
        sequence = self._opening(images)
        for number, (question, answer) in enumerate(turns, start=1):
            segment = number if independent else 0
            before = len(sequence)
            if number > 1 and not independent:
                sequence.add(self.next_opening)
            self._ask(sequence, question, follows_images=images > 0 and (number == 1 or independent), segment=segment)
            sequence.add([*self.encode(self.before_answer + answer), self.eos], labeled=True, segment=segment)
            if len(sequence) > limit:
                sequence.cut(limit if number == 1 else before)
                sequence.intact, sequence.was_cut = number > 1, True
                break
        return sequence

    def question(self, images: int, question: str) -> TokenSequence:
        """A conversation that ends before the answer."""
        sequence = self._opening(images)
        self._ask(sequence, question, follows_images=images > 0)
        return sequence

    def generate(self, prompt: str, source: bool, limit: int) -> TokenSequence:
        """A request for a picture, without the picture; its text is cut to fit `limit` tokens."""
        sequence = self._request_opening(source)
        text = self.encode(self.request(prompt, source))
        room = max(0, limit - len(sequence) - len(self.request_closing))
        sequence.add(text[:room])
        sequence.add(self.request_closing)
        sequence.intact = len(text) <= room
        sequence.was_cut = len(text) > room
        return sequence

    @property
    def request_closing(self) -> list[int]:
        """After the text of a request for a picture."""
        return [*self.closing, self.begin]

    def fixed_length(self, images: int) -> int:
        """Tokens of a conversation that truncation cannot remove, with one token each of question and answer."""
        return len(self._opening(images)) + len(self.closing) + 2

    def shortest_request(self, source: bool) -> int:
        """Tokens of a request for a picture that truncation cannot remove, with one token of text."""
        return len(self._request_opening(source)) + len(self.request_closing) + 1

    def _opening(self, images: int) -> TokenSequence:
        sequence = TokenSequence()
        sequence.add(self.head)
        sequence.add(self.opening)
        for number in range(images):
            sequence.add(self.encode(self.between_images) if number else [])
            self._picture(sequence)
        return sequence

    def _request_opening(self, source: bool) -> TokenSequence:
        return self._opening(int(source))

    def _picture(self, sequence: TokenSequence) -> None:
        """Add the tokens of one source picture."""
        sequence.add([self.begin])
        sequence.add([self.image] * self.visual_tokens, image=True)
        sequence.add([self.end])

    def _ask(self, sequence: TokenSequence, question: str, *, follows_images: bool, segment: int = 0) -> None:
        sequence.add(self.encode((self.after_images if follows_images else "") + question), segment=segment)
        sequence.add(self.closing, segment=segment)
