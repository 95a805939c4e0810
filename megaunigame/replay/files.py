"""The files of a saved buffer: one per rank."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from megaunigame.errors import CheckpointError

FILE, FILES = "hard_buffer-rank-{:05d}.safetensors", "hard_buffer-rank-*.safetensors"
HEADER = "hard_buffer"
"""Key in a file's metadata; the value is the JSON of :class:`SavedShape`."""


@dataclass(frozen=True)
class SavedShape:
    """Shape of a saved buffer, needed to read its bytes."""

    image_size: int
    max_length: int
    world_size: int
    rows: int
    calls: int
    """Micro-steps mined since the last merge."""


def saved_files(folder: Path) -> list[Path]:
    """The files of all ranks that saved, in rank order."""
    found = sorted(folder.glob(FILES))
    if not found:
        raise CheckpointError(
            f"{folder} holds no hard buffer (no {FILES}): it was saved by a run without one. Resume with the objectives it was "
            "saved with, or type checkpoint.resume=never to start again in another `output`."
        )
    world_size = read_shape(found[0]).world_size
    files = [folder / FILE.format(rank) for rank in range(world_size)]
    missing = [file.name for file in files if file not in found]
    if missing:
        raise CheckpointError(
            f"{folder}: the hard buffer was saved by {world_size} ranks, but {', '.join(missing)} is missing. Every rank must "
            "see the files of all: use one shared file system, or resume from an older one, checkpoint.resume=PATH/step-... ."
        )
    return files


def read_shape(file: Path) -> SavedShape:
    with safe_open(file, "numpy") as opened:
        return SavedShape(**json.loads(opened.metadata()[HEADER]))
