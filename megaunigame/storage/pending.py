"""A file that is still to be written: its content is a copy in host memory, so training may go on in the meantime."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names in a safetensors header."""
PIECE, FLUSHED = 16 * 1024**2, 256 * 1024**2
"""Bytes read or written at once, and bytes after which a file is flushed, so that a slow disk shows its progress."""


@dataclass(frozen=True)
class WrittenFile:
    """A file on the disk: what a manifest says about it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PendingFile:
    """A safetensors file, or a file of plain bytes where `content` is given."""

    name: str
    """A plain file name."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """On the CPU, contiguous; nobody changes them any more."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None

    @property
    def bytes(self) -> int:
        """Size of the file, without its header."""
        return sum(t.nbytes for t in self.tensors.values()) if self.content is None else len(self.content)

    def write(self, folder: Path, moved: Callable[[int], None] = lambda size: None) -> WrittenFile:
        """Write and flush the file; its hash is taken of what is written, not of what the disk holds. Raises OSError.

        `moved` is told the size of each part that the disk has: not of what the host still buffers.
        """
        digest, size = hashlib.sha256(), 0
        with open(folder / self.name, "wb") as file:
            since = 0
            for part in _in_pieces(self._parts()):
                file.write(part)
                digest.update(part)
                size, since = size + len(part), since + len(part)
                if since >= FLUSHED:
                    _flush(file)
                    moved(since)
                    since = 0
            _flush(file)
            moved(since)
        return WrittenFile(self.name, size, digest.hexdigest())

    def _parts(self) -> Iterator[memoryview]:
        if self.content is not None:
            yield memoryview(self.content)
            return
        header: dict[str, object] = {"__metadata__": dict(self.metadata)} if self.metadata else {}
        end = 0
        # By width, so that every tensor is aligned, then by name: equal content makes equal files.
        tensors = dict(sorted(self.tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
        for name, tensor in tensors.items():
            begin, end = end, end + tensor.nbytes
            header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # readers map the tensors: they begin at a multiple of 8 bytes
        yield memoryview(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            if tensor.nbytes:
                yield memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _in_pieces(parts: Iterable[memoryview]) -> Iterator[memoryview]:
    for part in parts:
        for start in range(0, len(part), PIECE):
            yield part[start : start + PIECE]


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sha256_of(path: Path, moved: Callable[[int], None] = lambda size: None) -> str:
    """Of a file on the disk. `moved` is told the size of each part that was read. Raises OSError."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while part := file.read(PIECE):
            digest.update(part)
            moved(len(part))
        return digest.hexdigest()
