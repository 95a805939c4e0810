"""A safetensors file of many tensors that never are in memory together.

The header of such a file comes first and names every tensor, but they come one by one, and are too large to be kept. So their
bytes go into a nameless file next to it, and from there, when all are known, after the header. The result has the bytes that
safetensors itself would write.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from megaunigame.storage.pending import DTYPES, PIECE

ORDER = ("BOOL", "U8", "F16", "BF16", "I32", "F32", "F64", "I64")
"""Number types as safetensors sorts them; in a file, the last come first."""


class SpooledTensors:
    """The tensors of one file to come."""

    def __init__(self, folder: Path):
        """`folder`: where there is room for them. Whatever ends the process, nothing stays there."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed in `write`)
        self._places: dict[str, tuple[str, list[int], int]] = {}
        """Name -> dtype, shape, place in the spool."""
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._places)

    def add(self, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
        """Take over a tensor on the host, as `dtype`; it is converted and written piece by piece. Raises OSError."""
        self._places[name] = (DTYPES[dtype], list(tensor.shape), self.bytes)
        for piece in _pieces(tensor):
            content = piece.to(dtype).contiguous().view(-1).view(torch.uint8).numpy()
            self._file.write(memoryview(content))  # type: ignore[arg-type]
            self.bytes += content.nbytes

    def names(self) -> list[str]:
        return list(self._places)

    def write(self, file: Path) -> None:
        """Write the safetensors file, and drop what was kept. Raises OSError."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        ends = [*(place for _, _, place in self._places.values()), self.bytes]
        lengths = {name: end - begin for name, begin, end in zip(self._places, ends[:-1], ends[1:], strict=True)}
        ordered = sorted(self._places, key=lambda name: (-ORDER.index(self._places[name][0]), name))
        end = 0
        for name in ordered:
            dtype, shape, _ = self._places[name]
            begin, end = end, end + lengths[name]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with self._file, open(file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in ordered:
                self._file.seek(self._places[name][2])
                left = lengths[name]
                while left:
                    piece = self._file.read(min(left, PIECE))
                    out.write(piece)
                    left -= len(piece)


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Consecutive parts of at most about PIECE bytes; of one that is not contiguous, at least a row each."""
    rows = tensor.view(-1) if tensor.is_contiguous() else tensor
    if rows.numel():
        yield from rows.split(max(1, PIECE * len(rows) // rows.nbytes))
