"""Conversations as token ids, with exact labels, image positions and segments.

Every piece is tokenized alone, so a label never starts inside a token. A family defines the pieces::

    head opening [images] question closing answer eos   next_opening question closing answer eos   ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerFast

from megaunigame.errors import DataError, ModelError
from megaunigame.models.text.fitting import kept_apart, kept_in_order
from megaunigame.models.text.plain_text import PlainText, PlainTokens, ids_of
from megaunigame.models.text.sequences import TokenSequence

SPARE = 8
"""Tokens that a text may have beyond its bytes."""


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
    keeps_source: bool = False
    """Whether a request without condition keeps its source picture."""

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
        """The request `sequence` without its condition: without its text, and without its source unless `keeps_source`."""

    @cached_property
    def plain(self) -> PlainText:
        """Encodes the texts of rows, in which no control token has a meaning."""
        return PlainText(self.tokenizer, (self.begin, self.end, self.image, self.eos, self.pad))

    def encode(self, text: str) -> list[int]:
        """Tokens of a text of the format itself, control tokens included."""
        return ids_of(self.tokenizer, text)

    def understand(
        self, images: int, turns: Sequence[tuple[str, str]], independent: bool, limit: int, *, fills: bool = False
    ) -> TokenSequence:
        """At most `limit` tokens, which hold the pictures and the whole first answer.

        A question that is too long loses its middle: what is asked comes first or last, around a page of text or context. Of
        turns that read each other the later ones that do not fit are dropped; of independent turns the longest questions are
        cut to one length, and only turns that do not fit with a cut question are dropped. `fills`: `UnderstandRow.fills`.
        Raises DataError when the first answer does not fit with one token of its question.
        """
        sequence = self._opening(images)
        asked = [self._asked(question, images > 0 and (independent or n == 0)) for n, (question, _) in enumerate(turns)]
        answers = [self._answer(answer) for _, answer in turns]
        if fills:
            room = limit - len(sequence) - len(self.closing) - len(asked[0].tokens)
            answers[0] = answers[0]._replace(tokens=answers[0].tokens[: max(1, room)])
        self._require_room(images, len(sequence), len(answers[0].tokens), len(asked[0].tokens), limit)
        between = [] if independent else self.next_opening
        around = [len(between if n else []) + len(self.closing) + len(answer.tokens) for n, answer in enumerate(answers)]
        lengths = [len(question.tokens) for question in asked]
        kept = (kept_apart if independent else kept_in_order)(lengths, around, limit - len(sequence))
        for turn, length in kept.items():
            segment = turn + 1 if independent else 0
            sequence.add(between if turn else [], segment=segment)
            sequence.add(self._ends(asked[turn], length) if length < lengths[turn] else asked[turn].tokens, segment=segment)
            sequence.add(self.closing, segment=segment)
            sequence.add(answers[turn].tokens, labeled=True, segment=segment)
            sequence.escaped += asked[turn].escaped + answers[turn].escaped
        sequence.intact = not fills and all(length == lengths[turn] for turn, length in kept.items())
        sequence.cut = not sequence.intact or len(kept) < len(turns)
        return sequence

    def require_fit(self, images: int, turns: Sequence[tuple[str, str]], limit: int) -> None:
        """Raises DataError when `understand` cannot keep the first answer of a row. Cheap for rows of ordinary length."""
        question, answer = turns[0]
        fixed = len(self._opening(images))
        # A token stands for a byte at least; a tokenizer may put a space before every text.
        if fixed + len(self.closing) + len((self.before_answer + answer).encode()) + SPARE < limit:
            return
        asked = len(self._asked(question, images > 0).tokens)
        self._require_room(images, fixed, len(self._answer(answer).tokens), asked, limit)

    def question(self, images: int, question: str, earlier: Sequence[tuple[str, str]] = ()) -> TokenSequence:
        """A conversation that ends before the answer to `question`, after `earlier` turns (question, answer)."""
        sequence = self._opening(images)
        for turn, (text, answer) in enumerate([*earlier, (question, None)]):
            asked = self._asked(text, images > 0 and turn == 0)
            sequence.add(self.next_opening if turn else [])
            sequence.add(asked.tokens)
            sequence.add(self.closing)
            sequence.escaped += asked.escaped
            if answer is not None:
                said = self._answer(answer)
                sequence.add(said.tokens)
                sequence.escaped += said.escaped
        return sequence

    def generate(self, prompt: str, source: bool, limit: int) -> TokenSequence:
        """A request for a picture, without the picture; its text is cut at its end to fit `limit` tokens."""
        sequence = self._request_opening(source)
        text, closing = self.plain.encode(self.request(prompt, source)), self._request_closing(source)
        room = max(0, limit - len(sequence) - len(closing))
        sequence.add(text.tokens[:room])
        sequence.join(closing)
        sequence.escaped = text.escaped
        sequence.cut = len(text.tokens) > room
        sequence.intact = not sequence.cut
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
        return len(self._request_opening(source)) + len(self._request_closing(source)) + 1

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

    def _request_closing(self, source: bool) -> TokenSequence:
        sequence = TokenSequence()
        sequence.add(self.request_closing)
        return sequence

    def _picture(self, sequence: TokenSequence) -> None:
        """Add the tokens of one source picture."""
        sequence.add([self.begin])
        sequence.add([self.image] * self.visual_tokens, image=True)
        sequence.add([self.end])

    def _asked(self, question: str, follows_images: bool) -> PlainTokens:
        return self.plain.encode((self.after_images if follows_images else "") + question)

    def _answer(self, answer: str) -> PlainTokens:
        text = self.plain.encode(self.before_answer + answer)
        return PlainTokens([*text.tokens, self.eos], text.escaped)

    def _ends(self, question: PlainTokens, length: int) -> list[int]:
        """`length` tokens of a question: the middle is cut out."""
        first = length // 2
        return [*question.tokens[:first], *question.tokens[len(question.tokens) - (length - first) :]]

    def _require_room(self, images: int, opening: int, answer: int, question: int, limit: int) -> None:
        least = self.fixed_length(images)
        if least > limit:
            raise DataError(
                f"{images} image(s) take {least - self.fixed_length(0)} tokens, and model.max_length is {limit}. Raise "
                "model.max_length or leave out samples with so many images."
            )
        needed = opening + min(1, question) + len(self.closing) + answer
        if needed > limit:
            raise DataError(
                f"the answer of {answer} tokens does not fit: with {images} image(s) and one token of the question the row has "
                f"{needed}, and model.max_length is {limit}. Raise model.max_length or leave out samples with such answers."
            )
