"""From a key, a record and a picture to one sample of a shard: the only place where samples are put together."""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from data_prep.shard_writer import ShardSample

STORED_AS_IS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
OTHER_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".JPG", ".JPEG", ".PNG", ".GIF")
LONGEST_KEY = 80
"""Bytes; a key and its extension must fit the 100 bytes of a name in a tar."""


class EntryFailure(Exception):
    """An entry that cannot be packed; its text is the reason written to failures.jsonl."""


def packed(key: str, record: dict[str, Any], picture: bytes | None) -> ShardSample:
    """A sample with the picture, if any, and the record as json, to which `width` and `height` in pixels are added.

    JPEG, PNG and WebP files are stored byte for byte; others, and the first frame of animations, as PNG.
    Raises EntryFailure for a picture that cannot be decoded.
    """
    sample: ShardSample = {"__key__": key}
    if picture is not None:
        extension, content, (width, height) = _stored_picture(picture)
        sample[extension] = content
        record = {**record, "width": width, "height": height}
    try:
        sample["json"] = json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise EntryFailure("text that is not Unicode") from error
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
    """The file, or the same name with another ending (OCR-VQA lists .jpg but has .gif and .png)."""
    path = root / relative
    if path.is_file():
        return path
    return next((other for ending in OTHER_ENDINGS if (other := path.with_suffix(ending)).is_file()), None)


def _stored_picture(content: bytes) -> tuple[str, bytes, tuple[int, int]]:
    """Extension, bytes and (width, height) of a picture as stored in a shard."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                image.load()  # all of it: a file cut short fails here, not in training
                if image.format in STORED_AS_IS and not getattr(image, "is_animated", False):
                    return STORED_AS_IS[image.format], content, image.size
                out = io.BytesIO()
                image.convert("RGB").save(out, "png", compress_level=1)
                return "png", out.getvalue(), image.size
    except UnidentifiedImageError as error:
        raise EntryFailure("not an image") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise EntryFailure(f"damaged image: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise EntryFailure("more pixels than an image should have") from error
