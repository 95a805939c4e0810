"""The samples of a tar that another tool wrote: names to keys and fields, in any order, with nothing dropped unseen."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megaunigame.data.decode import CODES_FIELD, CONTOURS_FIELD, DEPTH_FIELD, FURTHER_FIELD, SEGMENTATION_FIELD
from megaunigame.data.shards.tar_headers import members_of
from megaunigame.storage.plain_names import readable

from .sample import EntryFailure, short_key

FIRST, LAST = "first", "last"
"""Where a name is split into key and field: at its first dot, as WebDataset does, or at its last."""
TARGETS = (DEPTH_FIELD, SEGMENTATION_FIELD, CONTOURS_FIELD)
"""Fields of our shards that are packed as they are."""
HIDDEN = "hidden file (._NAME, .DS_Store, __MACOSX): skipped"
NO_FIELD = "file without an ending: skipped"
LINK = "link instead of a file: skipped"
REPEATED = "sample under a key that an earlier one has: kept, as KEY-2, KEY-3, ..."
UNSAFE = "absolute name, or one with `..`: stored under the rest of the name"

Span = tuple[int, int]
"""Offset in the tar and size, in bytes."""


@dataclass(frozen=True)
class TarSample:
    key: str
    """Fit for a shard: relative, short, without a dot, and no other sample of the tar has it."""
    fields: dict[str, list[Span]]
    """Field in lower case -> where its data is: once, unless the sample cannot be told from others of its name."""

    def spans(self) -> dict[str, Span]:
        """Raises EntryFailure when a field is there several times, and others are not as often."""
        if all(len(places) == 1 for places in self.fields.values()):
            return {field: places[0] for field, places in self.fields.items()}
        times = ", ".join(f"{field} {len(places)} times" for field, places in self.fields.items())
        raise EntryFailure(f"has {times} under one name; which belong together is not known")


def split_name(name: str, dots: str) -> tuple[str, str] | None:
    """(key, field in lower case) of a name in a tar; None when it has no dot or no key.

    With `dots` LAST, the fields of our shards that have a dot are still one: `depth.png`, `seg.png`,
    `contours.png`, `codes.bin`, `picture2.jpg`.
    """
    folder, slash, base = name.rpartition("/")
    if dots == FIRST:
        stem, _, field = base.partition(".")
    else:
        stem, field = _at_last_dot(base)
        stem_before, inner = _at_last_dot(stem)
        compound = f"{inner}.{field}".lower()
        if stem_before and (compound in (*TARGETS, CODES_FIELD) or FURTHER_FIELD.fullmatch(compound)):
            stem, field = stem_before, compound
    return (folder + slash + stem, field.lower()) if stem and field else None


def tar_samples(tar: Path, dots: str, notes: Counter[str]) -> Iterator[TarSample]:
    """The samples, in the order in which their first files appear; `notes` counts what was skipped or renamed.

    The files of a sample need not be adjacent. When n samples have the same key, the k-th of each field belong together.
    Raises DataError when the tar cannot be read to its end.
    """
    found: dict[str, dict[str, list[Span]]] = {}
    for member in members_of(tar):
        name = member.name.replace("\\", "/")
        if member.is_folder:
            continue
        if not member.is_file:
            notes[LINK] += 1
        elif _is_hidden(name):
            notes[HIDDEN] += 1
        elif (split := split_name(name, dots)) is None:
            notes[NO_FIELD] += 1
        else:
            key, field = split[0], readable(split[1])
            found.setdefault(key, {}).setdefault(field, []).append((member.offset, member.size))
    used: set[str] = set()
    for name, fields in found.items():
        notes[UNSAFE] += name.startswith("/") or ".." in name.split("/")
        times = {len(places) for places in fields.values()}
        copies = times.pop() if len(times) == 1 else 1
        notes[REPEATED] += copies - 1
        for copy in range(copies):
            own = {field: [places[copy]] for field, places in fields.items()} if copies > 1 else fields
            yield TarSample(_unique(stored_key(name), used), own)


def stored_key(name: str) -> str:
    """The key of a sample in our shards: below the shard's folder, without dots in its last part, of a length that fits."""
    parts = [part for part in re.split(r"[/\\]", readable(name)) if part not in ("", ".", "..")] or ["sample"]
    parts[-1] = parts[-1].replace(".", "_")
    return short_key(re.sub(r"[\x00-\x1f\x7f:]", "_", "/".join(parts)))


def _unique(key: str, used: set[str]) -> str:
    free, copy = key, 1
    while free in used:
        copy += 1
        free = f"{key}-{copy}"
    used.add(free)
    return free


def _at_last_dot(base: str) -> tuple[str, str]:
    stem, _, field = base.rpartition(".")
    return stem, field


def _is_hidden(name: str) -> bool:
    *folders, base = name.split("/")
    return base.startswith(".") or "__MACOSX" in folders
