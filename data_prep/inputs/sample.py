"""From a key, a record and a picture to one sample of a shard: the only place where samples are put together."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from megaunigame.data.decode import IMAGE_FIELDS, LARGEST_JSON
from megaunigame.pictures.rules import DEFAULT_RULES, PictureError, PictureRules
from megaunigame.storage.untrusted_json import is_deeper_than

from ..shard_writer import ShardSample
from .stored_picture import stored_picture

OTHER_ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jp2"),
    *(".JPG", ".JPEG", ".PNG", ".GIF", ".WEBP", ".BMP", ".TIF", ".TIFF"),
)
LONGEST_KEY = 80
"""Bytes; a key and its extension must fit the 100 bytes of a name in a tar."""


class EntryFailure(Exception):
    """An entry that cannot be packed; its text is the reason written to failures.jsonl."""


def packed(key: str, record: dict[str, Any], picture: bytes | None, rules: PictureRules = DEFAULT_RULES) -> ShardSample:
    """A sample with the picture, if any, and the record as json, to which `width` and `height` in pixels are added.

    The picture may be in any container that Pillow opens, found by its content, and is stored upright, opaque and as one
    frame (`stored_picture`); width and height are those of the stored one.
    Raises EntryFailure for a picture that cannot be decoded or is too large, and for a record that cannot be written as JSON.
    """
    sample: ShardSample = {"__key__": key}
    if picture is not None:
        try:
            extension, content, (width, height) = stored_picture(picture, rules)
        except PictureError as error:
            raise EntryFailure(str(error)) from error
        sample[extension] = content
        record = {**record, "width": width, "height": height}
    if is_deeper_than(record):
        raise EntryFailure("is nested too deeply")
    try:
        sample["json"] = json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise EntryFailure("text that is not Unicode") from error
    if len(sample["json"]) > LARGEST_JSON:
        raise EntryFailure(f"its JSON has {len(sample['json']):,} bytes, more than {LARGEST_JSON:,}")
    return sample


def numbered_key(number: int, name: object) -> str:
    """A unique shard key: the entry's number, then the part of its name that a file name may hold (never a dot)."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", str(name)).strip("_")[:60]
    return f"{number:08d}-{readable}" if readable else f"{number:08d}"


def short_key(key: str) -> str:
    """The key, or, when too long for a tar, its beginning and a hash of the whole."""
    if len(key.encode()) <= LONGEST_KEY:
        return key
    return f"{key.encode()[:48].decode(errors='ignore')}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def find_picture(root: Path, relative: str) -> Path | None:
    """The file, or the same name with an ending added, or with another instead (OCR-VQA lists .jpg but has .gif, .png).

    Only endings of pictures are replaced: `v1.5` is not v1.png.

    None also for names that no file can have: with a null byte, too long, not Unicode.
    """
    path = root / relative
    try:
        if path.is_file():
            return path
        others = [path.with_name(path.name + ending) for ending in OTHER_ENDINGS]
        if path.suffix[1:].lower() in IMAGE_FIELDS:
            others += [path.with_suffix(ending) for ending in OTHER_ENDINGS]
        return next((other for other in others if other.is_file()), None)
    except (OSError, ValueError):
        return None
