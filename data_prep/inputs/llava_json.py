"""`--format llava-json`: entries {"id", "image" (absent for text-only rows), "conversations"} and a folder of pictures.

The forms of the file are those of `json_entries`, of pictures those of `picture_names`, of conversations those of
`megaunigame.data.conversation`.
"""

from __future__ import annotations

import argparse
import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from megaunigame.data.conversation import TALK_KEYS
from megaunigame.data.edits import EDITS
from megaunigame.storage.untrusted_json import is_deeper_than

from .base import Entry, ListedPictures
from .conversation import checked_texts
from .json_entries import BrokenLine, entries_of
from .json_file import read_unchanged, require_folder, sha256_of
from .picture_names import KEYS, names_of
from .sample import EntryFailure, numbered_key
from .texts import talk_of

CAPTION_KEYS = ("caption", "captions")
"""Not `text`: in files of this form it may be a question."""
_ENTRY_FORM = (
    'a list of {"id": ..., "image": "a/b.jpg" (or a list; optional), "conversations": [{"from": "human", "value": ...}, ...]}'
)


@dataclass(frozen=True)
class LlavaJson(ListedPictures):
    """LLaVA-mix-665K and other files of conversations about pictures. All entries are checked before a picture is opened."""

    shard_name = "llava"
    needs: ClassVar[tuple[str, ...]] = ("json", "image_root")
    takes: ClassVar[tuple[str, ...]] = ("shard_size",)

    json: Path
    json_sha256: str
    image_root: Path
    shard_size: int

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> LlavaJson:
        return cls(arguments.json, sha256_of(arguments.json, "--json"), arguments.image_root, arguments.shard_size)

    def identity(self) -> dict[str, Any]:
        return {
            "json": self.json.name,
            "json_sha256": self.json_sha256,
            "image_root": str(self.image_root),
            "shard_size": self.shard_size,
        }

    def entries(self) -> list[Entry]:
        return _entries(self)


@functools.lru_cache(maxsize=1)  # a worker reads the file once, not once per shard
def _entries(source: LlavaJson) -> list[Entry]:
    content = read_unchanged(source.json, "--json", source.json_sha256)
    listed = entries_of(content, source.json, (*TALK_KEYS, *KEYS, "caption", EDITS), _ENTRY_FORM)
    entries = [_entry(number, found) for number, found in enumerate(listed)]
    if any(entry.images for entry in entries):  # a file of texts alone needs no folder
        require_folder(source.image_root, "--image-root")
    return entries


def _entry(number: int, found: Any) -> Entry:
    """An entry, or what is wrong with it: one odd entry is one failure."""
    name = found["id"] if isinstance(found, dict) and "id" in found else ""
    key = numbered_key(number, name if isinstance(name, str | int | float) else "")
    if isinstance(found, BrokenLine):
        return Entry(key, {}, problem=found.reason)
    if not isinstance(found, dict):
        return Entry(key, {}, problem=f"is a JSON {type(found).__name__}; wanted {_ENTRY_FORM}")
    if is_deeper_than(found):
        return Entry(key, {}, problem="is nested too deeply")
    notes: Counter[str] = Counter()
    try:
        images = names_of(found, talk_of(found))
        kept = {name: value for name, value in found.items() if name not in KEYS}
        record = checked_texts(kept, len(images), notes, captions=CAPTION_KEYS)
    except EntryFailure as failure:
        return Entry(key, {}, problem=str(failure))
    return Entry(key, record, images, notes=tuple(notes.elements()))
