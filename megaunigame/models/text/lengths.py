"""How long rows are likely to be, before their samples are read: pictures and frames exactly, texts by the counts of their
tokens where there are any, else by their characters.

A counted text may still be a token longer or shorter in its row: it is tokenized there together with the line end or the space
that a format puts before it.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from megaunigame.models.text.conversation import ConversationFormat
from megaunigame.step.amounts import Amounts
from megaunigame.step.requests import GENERATE, RowRequest

PROSE = (
    "The picture shows a narrow street in an old town. Two people with umbrellas walk past a small bakery, whose window is "
    "full of bread and cakes; on the left, a red bicycle leans against a stone wall. What might the people be talking about? "
    "They could be deciding whether to go inside, because it has just begun to rain. Answer the question with a single word: "
    "how many umbrellas are there? There are 2, and both of them are black."
)
"""Text as conversations about pictures have it."""
PLENTY, MOST_PAIRS = 1 << 30, 10_000
"""Tokens that any row fits into; pairs of a conversation."""


class RowLengths:
    """Of the rows of a family."""

    def __init__(self, conversation: ConversationFormat, after_prompt: int, max_length: int):
        self.format, self.after_prompt, self.max_length = conversation, after_prompt, max_length

    @cached_property
    def characters_per_token(self) -> float:
        """Of the family's tokenizer, in prose."""
        return len(PROSE) / self._tokens(PROSE)

    def of(self, request: RowRequest, amounts: Amounts) -> np.ndarray:
        """(n,) float64: tokens of the rows of `request`, at most `max_length`; 1 where a sample has nothing for such a row."""
        if request.pass_name == GENERATE:
            return self._drawn(request, amounts)
        return self._asked(request, amounts)

    def _asked(self, request: RowRequest, amounts: Amounts) -> np.ndarray:
        written = np.where(np.isnan(amounts.conversation), amounts.json_bytes, amounts.conversation)
        pairs = np.clip(np.nan_to_num(amounts.pairs, nan=1.0), 1, MOST_PAIRS)
        kept = np.minimum(pairs, request.turns) if request.turns else pairs
        counted = ~np.isnan(amounts.conversation_tokens)
        words = np.where(counted, amounts.conversation_tokens, np.maximum(0, written) / self.characters_per_token)
        words = words * (kept / pairs)
        frames = self._frame(0, 1) + (kept - 1) * (self._frame(0, 2) - self._frame(0, 1))
        pictures = amounts.pictures * (self._frame(1, 1) - self._frame(0, 1))
        # Where the index counts characters or tokens, a sample without any has no conversation, and its row is a dummy.
        told = ~np.isnan(amounts.conversation)
        nothing = ~told if told.any() else np.zeros(len(amounts), dtype=bool)
        nothing = np.where(counted, amounts.conversation_tokens == 0, nothing)
        return np.where(nothing, 1.0, np.minimum(self.max_length, frames + pictures + words))

    def _drawn(self, request: RowRequest, amounts: Amounts) -> np.ndarray:
        """Prompts of rows with a source are short, or not in the index: they count alike."""
        of_caption = np.nan_to_num(amounts.caption, nan=0.0) / self.characters_per_token
        of_caption = np.where(np.isnan(amounts.caption_tokens), of_caption, amounts.caption_tokens)
        words = np.zeros(len(amounts)) if request.takes_source else np.maximum(0, of_caption)
        frame = len(self.format.generate("a", request.takes_source, PLENTY)) - self._tokens("a")
        return np.where(amounts.pictures > 0, np.minimum(self.max_length, frame + self.after_prompt + words), 1.0)

    def _frame(self, pictures: int, pairs: int) -> int:
        """Tokens of a row apart from its texts."""
        turns = [("a", "a")] * pairs
        return len(self.format.understand(pictures, turns, False, PLENTY)) - 2 * pairs * self._tokens("a")

    def _tokens(self, text: str) -> int:
        return len(self.format.plain.encode(text).tokens)
