"""`--format llava-json`: a list of {"id", "image" (absent for text-only rows), "conversations"} and a folder of pictures."""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from data_prep.inputs.base import Entry, ListedPictures
from data_prep.inputs.conversation import checked_turns
from data_prep.inputs.json_file import read_json, require_folder, sha256_of
from data_prep.inputs.sample import EntryFailure, numbered_key
from megaunigame.errors import DataError

_ENTRY_FORM = '{"id": ..., "image": "a/b.jpg" (optional), "conversations": [{"from": "human", "value": ...}, ...]}'


@dataclass(frozen=True)
class LlavaJson(ListedPictures):
    """LLaVA-mix-665K and files of the same form. The whole file is checked before the first picture is opened."""

    shard_name = "llava"
    needs = ("json", "image_root")
    takes = ("shard_size",)

    json: Path
    json_sha256: str
    image_root: Path
    shard_size: int

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> LlavaJson:
        require_folder(arguments.image_root, "--image-root")
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
    listed = read_json(source.json, "--json", source.json_sha256)
    if not isinstance(listed, list) or not listed:
        got = "an empty list" if listed == [] else f"a JSON {type(listed).__name__}"
        raise DataError(f"--json {source.json}: got {got}; wanted a list of {_ENTRY_FORM}")
    return [_entry(source.json, number, entry) for number, entry in enumerate(listed)]


def _entry(path: Path, number: int, entry: Any) -> Entry:
    def refuse(problem: str) -> NoReturn:
        raise DataError(f"--json {path}: entry {number}: {problem}; wanted {_ENTRY_FORM}")

    if not isinstance(entry, dict):
        refuse(f"is a JSON {type(entry).__name__}")
    record = {name: value for name, value in entry.items() if name != "image"}
    image = entry.get("image")
    if image is not None and (not isinstance(image, str) or not image):
        refuse(f"has image {json.dumps(image)[:80]}, not one path")
    if image is not None and (Path(image).is_absolute() or ".." in Path(image).parts):
        refuse(f"has image {image!r}, which leads out of the image root")
    if not entry.get("conversations"):
        refuse(f"has no conversations (its keys: {', '.join(entry) or 'none'})")
    try:
        record["conversations"] = checked_turns(entry["conversations"], has_image=image is not None)
    except EntryFailure as failure:
        refuse(str(failure))
    return Entry(numbered_key(number, record["id"] if "id" in record else ""), record, image)
