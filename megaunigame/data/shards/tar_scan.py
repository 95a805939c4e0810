"""The samples of a tar, found by one scan of its headers: seeks over the data, under a millisecond per sample."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from megaunigame.data.shards.foreign import pack_command
from megaunigame.errors import DataError

Spans = dict[str, tuple[int, int]]
"""Field -> (offset in the tar file, size), in bytes."""


def members_of(tar: Path) -> Iterator[tarfile.TarInfo]:
    """Everything in the tar, in order. Raises DataError when it cannot be read to its end."""
    try:
        with open(tar, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            yield from archive
            # tarfile treats both the end of the file and a damaged header as the end of the archive.
            stream.seek(archive.offset)
            mark = stream.read(tarfile.BLOCKSIZE)
            if mark != bytes(tarfile.BLOCKSIZE):
                problem = "has a damaged header" if len(mark) == tarfile.BLOCKSIZE else "was cut short: it has no end"
                raise DataError(f"{tar} {problem} at byte {archive.offset:,}. Copy or make it again.")
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{tar} is not a whole, uncompressed tar file ({error}). Copy or make it again.") from error


def readable(name: str) -> str:
    """A name of a tar as text that can be written anywhere: bytes that are not UTF-8 become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


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
        if not member.isfile() or not stem or not dot:
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
        spans[field] = (member.offset_data, member.size)
    if spans:
        yield current, spans
