"""The files of a saved buffer: one per rank."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from megaunigame.errors import CheckpointError

FILE = "hard_buffer-rank-{:05d}.safetensors"
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


def saved_shape(folder: Path) -> SavedShape:
    """What all files of a saved buffer have in common, read from the first. No folder is listed: every rank does this."""
    first = folder / FILE.format(0)
    if not first.is_file():
        raise CheckpointError(
            f"{folder} holds no hard buffer (no {first.name}): it was saved by a run without one. Resume with the objectives "
            "it was saved with, or type checkpoint.resume=never to start again in another `output`."
        )
    with safe_open(first, "numpy") as opened:
        return SavedShape(**json.loads(opened.metadata()[HEADER]))


def file_of(folder: Path, rank: int) -> Path:
    """The file of one rank that saved. Raises CheckpointError when this rank does not see it."""
    file = folder / FILE.format(rank)
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: {file.name} of the hard buffer is missing. Every rank must see the files of all: use one shared file "
            "system, or resume from an older one, checkpoint.resume=PATH/step-... ."
        )
    return file
