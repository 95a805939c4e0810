"""Exact lengths of the texts of all samples, in the tokens of one tokenizer: a file next to the shards, `TOKENIZER.counts`.

`megaunigame prepare tokens` writes it and names it in `dataset.json`. The indexes of the shards stay as they are, and so does
what a cursor means: a run that is resumed may have the counts of a folder that it began without.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from megaunigame.errors import DataError, LostShard
from megaunigame.step.amounts import TOKENIZER_DIGITS, Amounts

ENDING = ".counts"
COLUMNS = 3
"""Tokens of the questions and answers, questions with an answer, tokens of the caption; `NONE`: the sample has no such text."""
NONE = -1
CELL = np.dtype("<i4")


def counts_name(tokenizer: str) -> str:
    """File name of the counts of a tokenizer."""
    return f"{tokenizer}{ENDING}"


def counts_bytes(samples: int) -> int:
    """Size of the counts of so many samples."""
    return samples * COLUMNS * CELL.itemsize


class TokenCounts:
    """Of the shards of a folder; what a shard has is read when it is asked for. Safe to use after a fork."""

    def __init__(self, where: str, file: io.FileIO, sizes: Sequence[int] | np.ndarray):
        """`where`: for messages. `sizes`: samples of every shard. Raises DataError for a file of another length."""
        self.where, self._file = where, file
        self._first = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        want, found = counts_bytes(int(self._first[-1])), os.fstat(file.fileno()).st_size
        if found != want:
            raise DataError(f"{where} has {found:,} bytes, and its shards have samples for {want:,}. {_remedy(where)}")

    def of(self, shard: int) -> np.ndarray:
        """(n, COLUMNS) int32. Raises LostShard when the file cannot be read now."""
        first, last = self._first[shard : shard + 2].tolist()
        try:
            content = os.pread(self._file.fileno(), counts_bytes(last - first), counts_bytes(first))
        except OSError as error:
            raise LostShard(f"{self.where} can no longer be read ({error}).", self.where.rpartition("/")[2]) from error
        if len(content) != counts_bytes(last - first):
            raise DataError(f"{self.where} was cut short while this run reads it. {_remedy(self.where)}")
        return np.frombuffer(content, dtype=CELL).reshape(-1, COLUMNS)


def open_counts(path: Path, sha256: str) -> io.FileIO:
    """The file of a local folder. Raises DataError unless it is there and the one that dataset.json describes."""
    try:
        file = io.FileIO(path, "r")
    except OSError as error:
        raise DataError(f"{path} is listed in dataset.json and cannot be opened ({error}). {_remedy(str(path))}") from error
    if not is_content(file, sha256):
        raise DataError(f"{path} is not the file that dataset.json describes (its sha256 differs). {_remedy(str(path))}")
    return file


def is_content(file: io.FileIO, sha256: str) -> bool:
    """Whether the whole file has this sha256."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def with_counts(amounts: Amounts, counts: np.ndarray) -> Amounts:
    """`amounts` of the samples that have these counts, (n, COLUMNS)."""
    talk, pairs, caption = np.maximum(counts, 0).T.astype(np.float64)
    return dataclasses.replace(amounts, pairs=pairs, conversation_tokens=talk, caption_tokens=caption)


def listed_counts(given: object) -> Mapping[str, str]:
    """tokenizer -> sha256 of its file, of `token_counts` of a manifest. Raises TypeError or ValueError."""
    if not isinstance(given, dict):
        raise TypeError("`token_counts` is not an object")
    for tokenizer, sha256 in given.items():
        for text, digits in ((tokenizer, TOKENIZER_DIGITS), (sha256, 64)):
            if not isinstance(text, str) or len(text) != digits or not set(text) <= set("0123456789abcdef"):
                raise ValueError(f"`token_counts` is not {{tokenizer of {TOKENIZER_DIGITS} hexadecimal digits: sha256}}")
    return given


def _remedy(where: str) -> str:
    return f"Copy it again, or make it again: megaunigame prepare tokens {where.rpartition('/')[0]} --for RECIPE."
