"""What samples hold, as far as an index says: the cost of their rows is known without reading them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOKENIZER_DIGITS = 16
"""Hexadecimal digits that name a tokenizer."""


@dataclass(frozen=True)
class Amounts:
    """Of n samples."""

    pictures: np.ndarray
    """(n,) int64: images of each, targets such as depth not counted."""
    json_bytes: np.ndarray
    """(n,) int64: size of its JSON, in which its texts are; 0 without one."""
    conversation: np.ndarray
    """(n,) float64: characters of its questions and answers; NaN: the index does not say."""
    pairs: np.ndarray
    """(n,) float64: its questions with an answer; NaN: the index does not say."""
    caption: np.ndarray
    """(n,) float64: characters of its caption; NaN: the index does not say."""
    conversation_tokens: np.ndarray
    """(n,) float64: tokens of its questions and answers, 0 without any; NaN: nobody has counted them for this tokenizer."""
    caption_tokens: np.ndarray
    """(n,) float64: tokens of its caption, 0 without one; NaN: nobody has counted them for this tokenizer."""

    def __len__(self) -> int:
        return len(self.pictures)

    def take(self, at: np.ndarray) -> Amounts:
        """Of the samples `at`, (m,) int64."""
        return Amounts(*(values[at] for values in self._arrays()))

    @classmethod
    def empty(cls, count: int) -> Amounts:
        """Of `count` samples without a picture or a text."""
        nothing, unknown = np.zeros(count, dtype=np.int64), np.full(count, np.nan)
        return cls(nothing, nothing.copy(), *(unknown.copy() for _ in range(5)))

    def put(self, at: np.ndarray, others: Amounts) -> None:
        """Replace those of the samples `at`, (m,) int64 or (n,) bool, by `others`."""
        for mine, theirs in zip(self._arrays(), others._arrays(), strict=True):
            mine[at] = theirs

    def _arrays(self) -> tuple[np.ndarray, ...]:
        texts = self.conversation, self.pairs, self.caption, self.conversation_tokens, self.caption_tokens
        return self.pictures, self.json_bytes, *texts
