"""Room for a file that a user names: what cannot be written is said before the work, with the option that named it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megaunigame.errors import ConfigError


@contextmanager
def room_for(option: str, place: Path) -> Iterator[None]:
    """Inside, an OSError becomes a ConfigError: `option place` cannot be written."""
    try:
        yield
    except OSError as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a folder on its way is a file" if is_file else error.strerror or str(error)
        raise ConfigError(f"{option} {place} cannot be written: {reason}. Give another place.") from error


def make_room(option: str, file: Path) -> None:
    """Make the folder of `file`, and the file, empty, if it is not there. Raises ConfigError when it cannot be written."""
    with room_for(option, file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
