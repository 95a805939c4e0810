"""What the fields of a foreign sample are: its json, its text, its picture, its targets, and what is not used.

- json: the field `json`; without one, the first that ends in `.json`.
- text: the field `txt`, `text` or `caption`; without one, the first that ends in one of them.
- picture: any field that is known as a picture by its ending, or that begins as one; of several the first by name, those
  without a dot before those with one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from .sample import EntryFailure
from .tar_members import TARGETS

PICTURES = frozenset(
    "jpg jpeg jpe jfif png webp gif bmp tif tiff avif heic heif jp2 j2k jpx jxl ppm pgm pnm tga image img picture".split()
)
TEXTS = ("txt", "text", "caption")
JSON = "json"
HEAD = 32
"""Bytes that tell what a field is."""

_MAGIC = re.compile(
    rb"\xff\xd8\xff"  # JPEG
    rb"|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP"
    rb"|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00"  # BMP: the size of its second header
    rb"|II[*+]\x00|MM\x00[*+]"  # TIFF
    rb"|....ftyp(?:avif|avis|hei[cmsx]|hev[cmsx]|mif1|msf1)"  # AVIF, HEIC
    rb"|\x00\x00\x00\x0c(?:jP  |JXL )\r\n\x87\n|\xff\x4f\xff\x51|\xff\x0a",  # JPEG 2000, JPEG XL
    re.DOTALL,
)


@dataclass(frozen=True)
class Roles:
    """Names of fields."""

    json: str | None
    text: str | None
    picture: str | None
    further: tuple[str, ...]
    """Pictures after the first."""
    targets: tuple[str, ...]
    unused: tuple[str, ...]


def begins_as_picture(head: bytes) -> bool:
    """Whether data that begins with these bytes is a picture of a container that is known."""
    return _MAGIC.match(head) is not None


def roles_of(names: Collection[str], head: Callable[[str], bytes]) -> Roles:
    """What each field is; `head` gives the first `HEAD` bytes of a field."""
    ordered = sorted(names, key=by_name)
    targets = tuple(name for name in TARGETS if name in names)
    json = next((name for name in ordered if _ending(name) == JSON), None)
    texts = [name for name in ordered if _ending(name) in TEXTS]
    text = min(texts, key=lambda name: ("." in name, TEXTS.index(_ending(name)), name), default=None)
    rest = [name for name in ordered if name not in (*targets, json, text) and _ending(name) not in (JSON, *TEXTS)]
    pictures = [name for name in rest if _ending(name) in PICTURES or begins_as_picture(head(name))]
    used = {*targets, json, text, *pictures}
    unused = tuple(name for name in ordered if name not in used)
    return Roles(json, text, pictures[0] if pictures else None, tuple(pictures[1:]), targets, unused)


def by_name(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """Sorts fields: those without a dot first, and numbers by their value."""
    return "." in name, _natural(name)


def refuse_several(names: Collection[str]) -> None:
    """Raises EntryFailure when two beginnings of the names each have a picture and a text: `jpg txt 5.jpg 5.txt`."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for name in names:
        beginning, _, ending = name.rpartition(".")
        if name not in TARGETS and (ending in PICTURES or ending in (*TEXTS, JSON)):
            kinds[beginning].add("picture" if ending in PICTURES else "text")
    whole = [beginning for beginning, there in kinds.items() if len(there) == 2]
    if len(whole) > 1:
        shown = ", ".join(sorted(names)[:6])
        raise EntryFailure(
            f"is {len(whole)} samples whose names have dots (fields {shown}): names are split at the first dot, as WebDataset "
            "does. Type --dots last to split them at the last one, or --dots first if they are fields of one sample"
        )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _ending(name: str) -> str:
    return name.rpartition(".")[2]
