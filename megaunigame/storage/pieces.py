"""Ranges of elements of stored tensors, read straight into memory that is already there.

A file that is mapped into memory is read page by page, which a network file system answers slowly. Here every range is one
call, and no more memory is taken than what receives it; one buffer, where numbers are converted or go to another device.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from megaunigame.errors import ModelError
from megaunigame.storage.retries import retried
from megaunigame.storage.untrusted_json import parse

BUFFER = 2**24
"""Bytes of the buffer for numbers that are converted."""
LARGEST_HEADER = 10**8
"""Bytes; safetensors itself opens no file with a larger one."""
AGAIN = "It is not complete, or was changed since it was opened. Copy it again."


@dataclass(frozen=True)
class Piece:
    """Elements of a tensor that lie in a file one after the other, little-endian."""

    file: str
    offset: int
    """Byte of the first one."""
    dtype: torch.dtype
    count: int


def data_offsets(file: Path) -> dict[str, range]:
    """Key of every tensor of a safetensors file that was opened without an error -> the bytes of the file that hold it."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            header = parse(opened.read(min(length, LARGEST_HEADER + 1)), LARGEST_HEADER)
            lie = {key: entry["data_offsets"] for key, entry in header.items() if key != "__metadata__"}
            return {key: range(8 + length + start, 8 + length + stop) for key, (start, stop) in lie.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"{file} has no header of safetensors ({error}). {AGAIN}") from error


def fingerprint(file: str | Path) -> str:
    """Size and header of a safetensors file: where its tensors lie, but not their values. Raises OSError."""
    with open(file, "rb") as opened:
        start = opened.read(8)
        header = opened.read(min(int.from_bytes(start, "little"), LARGEST_HEADER))
        return f"{os.fstat(opened.fileno()).st_size}:{hashlib.sha256(start + header).hexdigest()}"


def part(pieces: Sequence[Piece], elements: range) -> list[Piece]:
    """The pieces of these elements of the tensor that `pieces` make up."""
    found, first = [], 0
    for piece in pieces:
        start, stop = max(elements.start - first, 0), min(elements.stop - first, piece.count)
        if start < stop:
            offset = piece.offset + start * piece.dtype.itemsize
            found.append(Piece(piece.file, offset, piece.dtype, stop - start))
        first += piece.count
    return found


class PieceReader:
    """Reads pieces; keeps their files open inside `with`."""

    def __init__(self) -> None:
        self.bytes = 0
        """Read so far."""
        self._files: dict[str, BinaryIO] = {}
        self._open = ExitStack()

    def __enter__(self) -> PieceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._files.clear()

    def read_into(self, target: Tensor, pieces: Sequence[Piece]) -> None:
        """Copy these elements into `target` (n,), contiguous, of any dtype and on any device; n is their number.

        Raises ModelError for a file that ends too early, OSError for one that cannot be read.
        """
        for piece, place in _placed(pieces, target):
            if place.device.type == "cpu" and place.dtype == piece.dtype:
                self._fill(place, piece.file, piece.offset)
                continue
            buffer = torch.empty(min(piece.count, BUFFER // piece.dtype.itemsize), dtype=piece.dtype)
            for first in range(0, piece.count, len(buffer)):
                some = buffer[: piece.count - first]
                self._fill(some, piece.file, piece.offset + first * piece.dtype.itemsize)
                place[first : first + len(some)].copy_(some)

    def _fill(self, target: Tensor, file: str, offset: int) -> None:
        """Read the bytes from `offset` on into a tensor on the host."""
        memory = memoryview(target.view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy says so from Python 3.12 on
        end = offset + len(memory)
        while memory:
            got = retried(partial(self._read, file, memory, end - len(memory)))
            if got == 0:
                raise ModelError(f"{file} ends before its byte {end}. {AGAIN}")
            self.bytes += got
            memory = memory[got:]

    def _read(self, file: str, memory: memoryview, offset: int) -> int:
        """Fill the beginning of `memory`; how many bytes one call of the system brought."""
        return os.preadv(self._opened(file), [memory], offset)

    def _opened(self, file: str) -> int:
        if file not in self._files:
            self._files[file] = self._open.enter_context(open(file, "rb", buffering=0))
        return self._files[file].fileno()


def _placed(pieces: Sequence[Piece], target: Tensor) -> Iterator[tuple[Piece, Tensor]]:
    """Each piece, and the part of `target` that it goes to."""
    parts = target.split([piece.count for piece in pieces])
    return zip(pieces, parts, strict=True)
