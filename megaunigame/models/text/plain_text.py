"""Texts of users as tokens: a control token that is only written in a text stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

BRACKETED = re.compile(r"[<\[].+[>\]]", re.DOTALL)
"""What an added token looks like that has a meaning for a model. Others are rare characters and runs of spaces: plain text."""


class PlainTokens(NamedTuple):
    """A text as tokens, none of them a control token."""

    tokens: list[int]
    escaped: int
    """Control tokens that were written in the text."""


class PlainText:
    """Encodes texts that are not the format's own.

    Control tokens are the special tokens of the tokenizer, its added tokens in brackets such as `<tool_call>`, and those of
    the format. One that stands in a text is tokenized as the characters it is written with: its first character apart from the
    rest, so no id stands for the whole. The text that the model reads is the same.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, of_format: Iterable[int]):
        """`of_format`: ids of the tokens that a conversation format is built from."""
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        marked = {i for i, token in added.items() if token.special or BRACKETED.fullmatch(token.content)}
        self.controls = frozenset(marked | set(tokenizer.all_special_ids) | set(of_format)) - _unknown(tokenizer)

    @cached_property
    def written(self) -> frozenset[str]:
        """The control tokens as they are written in a text."""
        added = self.tokenizer.added_tokens_decoder  # made at each use: tens of thousands of entries in a family of codes
        names = (added[i].content if i in added else str(self.tokenizer.convert_ids_to_tokens(i)) for i in self.controls)
        return frozenset(names)

    def encode(self, text: str) -> PlainTokens:
        ids = self._ids(text)
        escaped = sum(i in self.controls for i in ids)
        if not escaped:
            return PlainTokens(ids, 0)
        written = {control for control in self.written if control in text}
        pieces = [i for piece in _broken(text, written) for i in self._ids(piece)] if written else ids
        if self.controls.isdisjoint(pieces):
            return PlainTokens(pieces, escaped)
        # A normalizer may make a control token of other characters. A character alone is none, or cannot be written at all.
        single = [i for character in text for i in self._ids(character)]
        return PlainTokens([i for i in single if i not in self.controls], escaped)

    def _ids(self, text: str) -> list[int]:
        return ids_of(self.tokenizer, text)


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Tokens of a text, control tokens included: those of `tokenizer.encode`, which takes several times as long around the
    same call."""
    if not text:
        return []
    backend = tokenizer.backend_tokenizer
    # An earlier call may have left these in the tokenizer; `encode` puts them back.
    left = backend.padding or backend.truncation or backend.encode_special_tokens != tokenizer.split_special_tokens
    found: list[int]
    found = tokenizer.encode(text, add_special_tokens=False) if left else backend.encode(text, add_special_tokens=False).ids
    return found


def _unknown(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The id for characters that the tokenizer lacks, which any text may have; not if it also is a control token."""
    others = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    unknown = tokenizer.unk_token_id
    return set() if unknown is None or unknown in others else {unknown}


def _broken(text: str, controls: set[str]) -> Iterator[str]:
    """The text in pieces that end after the first character of every one of `controls`, those in the rest included."""
    pattern = re.compile("|".join(re.escape(c) for c in sorted(controls, key=len, reverse=True)))
    start = 0
    while found := pattern.search(text, start):
        yield text[start : found.start() + 1]
        start = found.start() + 1
    yield text[start:]
