"""Texts to draw, in a file: one prompt a line (.txt), or one JSON object a line, {"id": "a1", "prompt": "a red cube"}."""

from __future__ import annotations

from pathlib import Path

from megaunigame.errors import ConfigError, DataError
from megaunigame.inference.questions import entry_of, name_of, text_of

TEXT, LINES = ".txt", (".jsonl", ".json")


def check_kind(file: Path) -> None:
    """Raise ConfigError for a file whose name does not say how to read it."""
    if file.suffix not in (TEXT, *LINES):
        raise ConfigError(
            f"--prompts {file} must end with {TEXT} (a prompt a line) or {LINES[0]} (an object with `prompt` a line)."
        )


def prompt_line(file: Path, line: bytes, number: int) -> tuple[str, str]:
    """(item, prompt) of a line. Raises DataError."""
    if file.suffix == TEXT:
        try:
            return str(number), line.decode().strip().replace("\0", "")
        except UnicodeDecodeError as error:
            raise DataError(f"The line is not UTF-8 ({error.reason}).") from error
    entry = entry_of(line)
    return name_of(entry, number), text_of(entry, "prompt")
