"""Questions in a file: one JSON object a line.

    {"id": "a1", "image": "one.png", "question": "What is left of the cube ?"}
    {"images": ["one.png", "two.png"], "question": "What is the difference ?"}
    {"question": "How many sides has a cube ?"}
    {"id": 7, "image": "one.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is it ?"}]}

A conversation, in any form in which training reads them, is asked its last question after its earlier turns; a last answer is
the reference. Paths are relative to the file, or to another folder.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from megaunigame.data.conversation import LONGEST_TEXT, TALK_KEYS, read_conversation
from megaunigame.data.decode import LARGEST_JSON
from megaunigame.errors import ConfigError, DataError
from megaunigame.inference.model import Question
from megaunigame.inference.pictures import as_pixels
from megaunigame.storage.foreign_text import one_line, quoted
from megaunigame.storage.untrusted_json import parse

NOT_SAID = "-"
"""Stands for the answer that is asked for, while a conversation is read."""


class FileLine(NamedTuple):
    number: int
    """In the file, from 1."""
    content: bytes


def read_items(file: Path) -> list[FileLine]:
    """The lines of a file that are not blank, without a byte order mark. Raises ConfigError when there are none."""
    try:
        content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}. Give a file with one item a line.") from error
    lines = [FileLine(number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    if not lines:
        raise ConfigError(f"{file} has no lines. Give a file with one item a line.")
    return lines


@dataclass(frozen=True)
class AskedLine:
    """A line, read as far as it can be without its pictures."""

    item: str
    question: str
    earlier: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...]
    reference: str
    """"": none."""

    def load(self, root: Path) -> Question:
        """Raises DataError when a picture cannot be read."""
        return Question(self.question, [as_pixels(root / name) for name in self.pictures], self.earlier, self.item)


def entry_of(line: bytes) -> dict[str, Any]:
    """The object in a line. Raises DataError."""
    try:
        entry = parse(line, LARGEST_JSON)
    except ValueError as error:
        raise DataError(f"The line is not JSON: {one_line(error)}.") from error
    if not isinstance(entry, dict):
        raise DataError(f"The line holds a {type(entry).__name__}, not an object: {quoted(entry)}.")
    return entry


def name_of(entry: Mapping[str, Any], number: int) -> str:
    """The `id` of an item, else its place among the items of the file, from 0. Raises DataError."""
    name = entry.get("id", number)
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise DataError(f"`id` must be a text or a whole number; got {quoted(name)}.")
    return str(name)


def asked_line(line: bytes, number: int) -> AskedLine:
    """Raises DataError, saying what is wrong with the line."""
    entry = entry_of(line)
    item, pictures = name_of(entry, number), _pictures(entry)
    talk = next((entry[key] for key in TALK_KEYS if entry.get(key)), None)
    if talk is None:
        talk = [{"from": "human", "value": text_of(entry, "question")}]
    if not isinstance(talk, list):
        raise DataError(f"The conversation is a {type(talk).__name__}; it must be a list of turns.")
    # An answer at the end, if there is one, becomes one turn with what is added here.
    try:
        conversation = read_conversation([*talk, {"from": "gpt", "value": NOT_SAID}], len(pictures))
    except DataError as error:
        raise DataError(f"The line {error}.") from error
    *earlier, (question, said) = conversation.asked()
    return AskedLine(item, question, tuple(earlier), pictures, said.removesuffix(NOT_SAID).strip())


def text_of(entry: Mapping[str, Any], key: str) -> str:
    """Raises DataError unless `key` holds a text that is not blank."""
    text = entry.get(key)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"`{key}` must be a text that is not blank; got {quoted(text)}. The line has {quoted(sorted(entry))}.")
    if len(text) > LONGEST_TEXT:
        raise DataError(f"`{key}` has {len(text):,} characters, more than the {LONGEST_TEXT:,} that are read.")
    return text.replace("\0", "")


def _pictures(entry: Mapping[str, Any]) -> tuple[str, ...]:
    given = entry.get("images", entry.get("image"))
    names = [] if given is None else given if isinstance(given, list) else [given]
    for name in names:
        if not isinstance(name, str) or not name:
            raise DataError(f"`image` must be a path, `images` a list of paths; got {quoted(given)}.")
    return tuple(names)
