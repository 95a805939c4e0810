"""The samples of a tar, found by one scan of its headers: seeks over the data, under a millisecond per sample."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megaunigame.data.shards.foreign import pack_command
from megaunigame.data.shards.tar_headers import members_of
from megaunigame.errors import DataError
from megaunigame.storage.plain_names import readable

Spans = dict[str, tuple[int, int]]
"""Field -> (offset in the tar file, size), in bytes."""


def scan_tar(tar: Path) -> Iterator[tuple[str, Spans]]:
    """Key and spans of every sample, in order. Names are split as WebDataset does: at the first dot after the last slash,
    the field in lower case. Bytes of a key that are not UTF-8 are half of a surrogate pair each, so that keys stay different.

    Raises DataError when the tar cannot be read to its end, or the fields of a key are not adjacent.
    """
    seen: set[str] = set()
    current, spans = "", Spans()
    for member in members_of(tar):
        folder, slash, name = member.name.rpartition("/")
        stem, dot, field = name.partition(".")
        if not member.is_file or not stem or not dot:
            continue
        key, field = folder + slash + stem, readable(field).lower()
        if key != current:
            if spans:
                yield current, spans
            if key in seen:
                raise DataError(
                    f"{tar}: the fields of sample {readable(key)!r} are not adjacent. Write the tar with its members sorted by "
                    f"name (tar --sort=name), or pack it: {pack_command(tar)}"
                )
            seen.add(key)
            current, spans = key, {}
        if field in spans:
            raise DataError(
                f"{tar}: sample {readable(key)!r} has two fields {field!r}. Write the tar again, or pack it: "
                f"{pack_command(tar)}"
            )
        spans[field] = (member.offset, member.size)
    if spans:
        yield current, spans
