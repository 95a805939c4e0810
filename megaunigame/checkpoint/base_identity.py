"""Tells the weights a run began with from others of the same names and shapes: adapters fit only their own base."""

from __future__ import annotations

import hashlib
from pathlib import Path

from megaunigame.checkpoint.manifest import MANIFEST
from megaunigame.errors import ModelError
from megaunigame.models.weights.tensor_files import LAYOUTS, TensorFiles

PIECES, PIECE_BYTES = 64, 4096
"""Read of each file, evenly spread: every layer of a model is hit several times, and 68 GB cost a second."""


def base_identity(model_path: str | Path, start: str = "") -> str:
    """Hex SHA-256 of a sample of the weights that a run begins with; empty without a folder at `model_path`.

    `start`: as in `TrainState`. Of a model folder, names below it, sizes and pieces of its weight files; of a step folder, its
    manifest, which has the hashes of all its files. The place of a folder does not count: folders move. Raises ModelError when
    a file is missing or cannot be read.
    """
    if not Path(model_path).is_dir():
        return ""
    content = hashlib.sha256()
    for folder in (Path(model_path), *([Path(start)] if start else [])):
        files = [folder / MANIFEST] if (folder / MANIFEST).is_file() else _weight_files(folder)
        for file in files:
            try:
                content.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode())
                content.update(_pieces(file))
            except OSError as error:
                raise ModelError(f"{file} cannot be read ({error.strerror}). Copy it again.") from error
    return content.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    """Of the folder, and of a frozen tokenizer in a folder below it."""
    files: list[Path] = []
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if any((place / layout).is_file() for layout in LAYOUTS):
            files += TensorFiles.of_folder(place).files
    return files


def _pieces(file: Path) -> bytes:
    """The first and the last bytes, and pieces between; all of a small file."""
    size, pieces = file.stat().st_size, []
    with open(file, "rb") as opened:
        if size <= PIECES * PIECE_BYTES:
            return opened.read()
        for number in range(PIECES):
            opened.seek(number * (size - PIECE_BYTES) // (PIECES - 1))
            pieces.append(opened.read(PIECE_BYTES))
    return b"".join(pieces)
