"""One mined example as a fixed number of bytes, sent and saved without further encoding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KEY_BYTES = 128
"""Bytes of a sample's key; longer keys are cut (they are only shown, never looked up)."""


@dataclass(frozen=True)
class RecordLayout:
    """The shape of every record of a run."""

    image_size: int
    """Side S of the picture in pixels."""
    max_length: int
    """Largest number of tokens L."""

    @property
    def dtype(self) -> np.dtype:
        """Structured, packed, little endian: an array of n records is `n * dtype.itemsize` bytes under `.view(np.uint8)`."""
        return np.dtype(
            [
                ("image", "u1", (3, self.image_size, self.image_size)),
                ("tokens", "<i4", (self.max_length,)),
                ("labelled", "?", (self.max_length,)),  # the loss falls on this token
                ("slots", "?", (self.max_length,)),  # a visual token goes here
                ("segments", "<i2", (self.max_length,)),
                ("length", "<i4"),  # tokens in use, the rest is padding
                ("loss", "<f4"),  # how hard it is: the latest known loss, less `reference`
                ("reference", "<f4"),  # what is subtracted from its loss; 0: nothing
                ("similarity", "<f4"),  # cosine of the CLIP filter
                ("step", "<i8"),  # optimizer step it was mined in
                ("drawn", "<i4"),  # times it was replayed
                ("spent", "?"),  # no longer drawn; leaves at the next merge
                ("key", f"S{KEY_BYTES}"),
            ]
        )

    def empty(self, count: int) -> np.ndarray:
        """(count,) records of zeros. Memory is taken only as they are written."""
        return np.zeros(count, self.dtype)


def encode_key(key: str) -> bytes:
    """What to store in a record's `key` field."""
    return key.encode()[:KEY_BYTES]


def decode_key(stored: bytes) -> str:
    """The key of a record, without a character that was cut in the middle."""
    return stored.decode(errors="ignore")
