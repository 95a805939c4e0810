"""Names of picture files as data sets write them, and the files below the image root that they mean."""

from __future__ import annotations

import errno
import posixpath
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from megaunigame.storage.foreign_text import quoted

from .sample import EntryFailure, find_picture

KEYS = ("image", "images")
"""Keys of an entry that name its pictures: a path, or a list of paths."""
OTHER_MEDIA = ("video", "videos", "audio", "audios")


def names_of(entry: dict[str, Any], talk: Any) -> tuple[str, ...]:
    """The pictures of an entry, from its own keys or, without those, from the content lists of its turns.

    Nothing, null and "" are a text-only entry. Raises EntryFailure for names that cannot be a file below the image root.
    """
    for key in OTHER_MEDIA:
        if entry.get(key):
            raise EntryFailure(f"has {key}: only pictures are packed")
    given = [entry[key] if isinstance(entry[key], list) else [entry[key]] for key in KEYS if entry.get(key)]
    if len(given) == 2 and given[0] != given[1]:
        raise EntryFailure("has different pictures in `image` and in `images`; leave one of the two out")
    named = [item for item in given[0] if item not in (None, "")] if given else []
    return tuple(_checked(_path(item)) for item in named or _in_turns(talk))


def find_file(root: Path, name: str) -> Path | None:
    """The file `name` below `root`: as written; with / for \\; with %20 and the like decoded; or with another ending."""
    for written in _forms(name):
        below = _below(root, written)
        try:
            found = None if below is None else find_picture(root, below)
        except ValueError:  # a null character: no file has such a name
            found = None
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            found = None
        if found is not None:
            return found
    return None


def missing(name: str) -> str:
    """The reason of an entry whose picture `find_file` does not find."""
    others = _forms(name)[1:]
    return f"missing file (neither as {', nor as '.join(map(repr, others))})" if others else "missing file"


def _path(item: Any) -> str:
    """The path of one picture: a text, or an object that has it."""
    if isinstance(item, dict):
        item = next((item[key] for key in ("path", "file_name", "url", "image") if isinstance(item.get(key), str)), item)
    if not isinstance(item, str):
        raise EntryFailure(f"has a picture {quoted(item)}, which is not a path")
    return item.removeprefix("file://")


def _checked(name: str) -> str:
    if name.startswith("data:"):
        raise EntryFailure("has a picture inside the JSON (data:...): write it to a file below --image-root and name that")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        raise EntryFailure(
            f"has the URL {name[:120]} for a picture: download it (img2dataset does many) and name the file below --image-root"
        )
    if any(posixpath.normpath(form).split("/")[0] == ".." for form in _forms(name)):
        raise EntryFailure(f"has image {name[:120]!r}, which leads out of the image root")
    return name


def _forms(name: str) -> list[str]:
    """The ways to read a name, the first that is a file counts."""
    turned = name.replace("\\", "/")
    return list(dict.fromkeys((name, turned, unquote(name), unquote(turned))))


def _below(root: Path, name: str) -> str | None:
    """The name relative to `root`; a leading slash is that of the root. None when it leads out."""
    if Path(name).is_absolute() and Path(name).is_relative_to(root):
        name = str(Path(name).relative_to(root))
    relative = posixpath.normpath(name.lstrip("/"))
    return None if relative.split("/")[0] in ("..", ".") else relative


def _in_turns(talk: Any) -> list[Any]:
    """What the image parts of content lists name: `{type: image, image: PATH}`, `{type: image_url, image_url: {url}}`."""
    contents = (
        [turn.get("content") or turn.get("value") for turn in talk if isinstance(turn, dict)] if isinstance(talk, list) else []
    )
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    named = (part.get(key) for part in parts for key in ("image", "image_url", "path", "url") if part.get("type") != "text")
    return [name for name in named if name]
