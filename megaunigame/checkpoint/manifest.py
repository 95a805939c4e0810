"""What a complete checkpoint consists of: manifest.json, written last.

{"format": 2, "saves": 9, "step": 500, "world_size": 8, "model": "<signature>", "files": {"<name>": [bytes, "<sha256>"], ...},
 "sha256": "<of all these entries>"}
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaunigame.errors import CheckpointError
from megaunigame.storage.foreign_text import quoted
from megaunigame.storage.json_files import read_object
from megaunigame.storage.pending import WrittenFile
from megaunigame.storage.retries import retried

MANIFEST, TRAIN_STATE = "manifest.json", "train_state.json"
FORMAT = 2
"""1: files of DeepSpeed, without a `format` in the manifest."""
NAME = re.compile(r"(?!\.)[\w.-]{1,200}", re.ASCII)
"""Plain file names: a manifest may come from elsewhere."""
HASH = re.compile(r"[0-9a-f]{64}")
LARGEST = 2**63 - 1
REMEDY = "Take another step folder."
"""For who does not know of another one."""


@dataclass(frozen=True)
class Manifest:
    step: int
    world_size: int
    model: str
    """Signature of the trained parameters: names and whole shapes."""
    files: dict[str, WrittenFile]
    """Name -> file; all but the manifest."""
    saves: int = 0
    """1 for the first save in its folder, then counted on: a run that went back saves lower steps later. 0: not known."""

    def as_json(self) -> str:
        files = {name: [file.bytes, file.sha256] for name, file in sorted(self.files.items())}
        entries: dict[str, Any] = {"format": FORMAT, "saves": self.saves, "step": self.step, "world_size": self.world_size}
        entries |= {"model": self.model, "files": files}
        return json.dumps({**entries, "sha256": _hash(entries)}, indent=1)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


def read_manifest(folder: Path, remedy: str = REMEDY) -> Manifest:
    """The manifest of a step folder, after a look at the size of every file it lists: one metadata call for each.

    Raises CheckpointError naming the file that is missing, truncated or garbage, and what to do then; OSError when the file
    system does not say which of these it is.
    """
    manifest = described(folder, remedy)
    for file in manifest.files.values():
        got = _size(folder / file.name)
        if got != file.bytes:
            found = "is missing" if got is None else f"has {got} bytes"
            raise CheckpointError(
                f"Checkpoint {folder} is damaged: {file.name} {found}, its manifest says {file.bytes}. {remedy}".strip()
            )
    return manifest


def described(folder: Path, remedy: str = REMEDY) -> Manifest:
    """The manifest alone, without a look at the files. Raises CheckpointError or OSError, as `read_manifest`."""
    path = folder / MANIFEST
    if _size(path) is None:
        raise CheckpointError(f"{folder} is not a complete checkpoint (no {MANIFEST}). {remedy}".strip())
    what = "the manifest of a checkpoint"
    entries = retried(lambda: read_object(path, what, CheckpointError, remedy, disk_errors=True))
    return parsed(entries, path, remedy)


def parsed(entries: dict[str, Any], path: Path, remedy: str = REMEDY) -> Manifest:
    """The entries of `path` with every value checked. Raises CheckpointError."""
    if "format" not in entries and "world_size" in entries:
        raise CheckpointError(
            f"{path.parent} was saved by an older version of megaunigame, whose format is not read any more. Export it with "
            "that version (megaunigame export) and begin with model.weights_from=EXPORTED, in another `output`."
        )
    problem = _problem(entries)
    if problem:
        raise CheckpointError(f"{path} is not the manifest of a checkpoint ({problem}). {remedy}".strip())
    files = {name: WrittenFile(name, size, sha256) for name, (size, sha256) in entries["files"].items()}
    return Manifest(entries["step"], entries["world_size"], entries["model"], files, entries.get("saves", 0))


def _problem(entries: dict[str, Any]) -> str:
    if entries.get("format") != FORMAT:
        return f"format {quoted(entries.get('format'))}, this version reads {FORMAT}"
    for name, least in (("step", 0), ("world_size", 1), ("saves", 0)):
        if not _number(entries.get(name, 0 if name == "saves" else None), least):
            return f"{name} must be a whole number from {least}"
    files = entries.get("files")
    if not isinstance(entries.get("model"), str) or not isinstance(files, dict):
        return "model must be a text, files an object"
    for name, entry in files.items():
        if not NAME.fullmatch(name) or name == MANIFEST:
            return f"{name[:50]!r} is not a plain file name"
        if not (isinstance(entry, list) and len(entry) == 2 and _number(entry[0], 0) and isinstance(entry[1], str)):
            return f"files.{name} must be [bytes, sha256]"
        if not HASH.fullmatch(entry[1]):
            return f"files.{name} has no sha256"
    if TRAIN_STATE not in files:
        return f"no {TRAIN_STATE} among its files"
    rest = {name: value for name, value in entries.items() if name != "sha256"}
    return "" if entries.get("sha256") == _hash(rest) else "its entries are not those that were written"


def _hash(entries: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _number(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST


def _size(path: Path) -> int | None:
    try:
        return retried(path.stat).st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
