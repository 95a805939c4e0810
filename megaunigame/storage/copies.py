"""Copies of small files out of a model folder, which somebody else may have made, into a folder that is to be published."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from megaunigame.errors import ModelError

LARGEST = 256 * 1024**2
"""Bytes of a settings file, a tokenizer or a license."""


def real_file(file: Path) -> Path:
    """The file itself. In the cache of the Hugging Face hub, `file` is a link into the `blobs` of its model.

    Raises ModelError for a link that leads anywhere else, for what is not a file, and for more than `LARGEST` bytes: else a
    folder could have any file of this machine published.
    """
    real, folder = file.resolve(), file.parent.resolve()
    cached = next((place.parent / "blobs" for place in folder.parents if place.name == "snapshots"), folder)
    if not (real.is_relative_to(folder) or real.is_relative_to(cached)):
        raise ModelError(
            f"{file} is a link to {real}, outside of its model folder, and would be copied into an export. Put the file itself "
            f"there (cp -L {shlex.quote(str(file))} COPY, then move the copy to its place), or delete the link."
        )
    if not real.is_file() or real.stat().st_size > LARGEST:
        raise ModelError(f"{file} is not a file of at most {LARGEST:,} bytes. Take it out of the model folder.")
    return real


def copy_file(file: Path, target: Path) -> None:
    """Copy a file of a model folder. Raises ModelError as `real_file`."""
    shutil.copyfile(real_file(file), target)
