"""The members of a tar, from its headers alone: POSIX ustar and pax, GNU long names and sizes (POSIX.1-2008, GNU tar manual).

Own code and not `tarfile`, which takes memory and time of the square of a hostile header, and goes back for negative sizes.
Here a header is read once, is bounded, and the next one is always further on.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megaunigame.errors import DataError

BLOCK = 512
LONGEST_HEADER = 2**20
"""Bytes of one header with extended attributes or a long name. Usual ones have some hundreds."""
LARGEST_FILE = 2**50
LONG_NAME, LONG_LINK, PAX, PAX_OF_SOLARIS, PAX_FOR_ALL, SPARSE = b"L", b"K", b"x", b"X", b"g", b"S"
FILE, FOLDER = (b"0", b"\0", b"7"), b"5"
WITHOUT_DATA = (b"1", b"2", b"3", b"4", FOLDER, b"6")
"""Hard and symbolic links, devices, folders, pipes: whatever size they state, no data follows."""
WITHOUT_PREFIX = (LONG_NAME, LONG_LINK, SPARSE)
"""GNU's own kinds, which store other things where ustar stores the folder of a name."""
_SIGNED = struct.Struct("148b8x356b")


class HeaderError(Exception):
    """What is wrong with a tar, in words."""


@dataclass(frozen=True)
class Member:
    name: str
    """Bytes that are not UTF-8 are half of a surrogate pair each."""
    kind: bytes
    offset: int
    """First byte of its data in the tar."""
    size: int

    @property
    def is_file(self) -> bool:
        return self.kind in FILE

    @property
    def is_folder(self) -> bool:
        return self.kind == FOLDER


def members_of(tar: Path) -> Iterator[Member]:
    """Everything in the tar, in order, links and devices included. Raises DataError, naming the file and the byte, when it
    cannot be read to its end."""
    at = 0
    try:
        # A pipe or a device under the name of a shard would wait, or never end.
        with open(os.open(tar, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise HeaderError("is not a file")
            while (member := _next(stream, at)) is not None:
                yield member
                at = _end(member)
    except HeaderError as error:
        raise DataError(f"{tar} {error} at byte {at:,}. Copy or make it again.") from error
    except OSError as error:
        raise DataError(f"{tar} cannot be read ({error}). Copy it again.") from error


def _next(stream: BinaryIO, at: int) -> Member | None:
    """The member whose headers begin at byte `at`; None at the end of the tar."""
    name: str | None = None
    size: int | None = None
    while True:
        header = _read(stream, at, BLOCK)
        if header == bytes(BLOCK):
            return None
        kind, stated = header[156:157], _checked_size(header, first=at == 0)
        data = at + BLOCK
        if kind in (LONG_NAME, LONG_LINK, PAX, PAX_OF_SOLARIS, PAX_FOR_ALL):
            if stated > LONGEST_HEADER:
                raise HeaderError(f"has a header of {stated:,} bytes, more than {LONGEST_HEADER:,},")
            content = _read(stream, data, stated)
            records = {} if kind in (LONG_NAME, LONG_LINK) else _records(content)
            if any(key.startswith(b"GNU.sparse.") for key in records):
                raise HeaderError("has a file with holes (GNU sparse), which no field may be,")
            if kind == PAX_FOR_ALL and not records.keys().isdisjoint((b"path", b"size")):
                raise HeaderError("has one name or size for all files")
            # Of several headers of one member the first counts, as for tarfile.
            if kind == LONG_NAME and name is None:
                name = _text(content.partition(b"\0")[0])
            if b"path" in records and name is None:
                name = _text(records[b"path"])
            if b"size" in records and size is None:
                size = _number(records[b"size"], 10)
            at = data + _rounded(stated)
            continue
        if kind == SPARSE:
            raise HeaderError("has a file with holes (GNU sparse), which no field may be,")
        short = _text(header[:100].partition(b"\0")[0])
        folder = "" if kind in WITHOUT_PREFIX else _text(header[345:500].partition(b"\0")[0])
        stored = f"{folder}/{short}" if folder else short
        found = stored if name is None else name
        if kind == b"\0" and found.endswith("/"):  # how tools wrote folders before POSIX
            kind = FOLDER
        return Member(found.rstrip("/") if kind == FOLDER else found, kind, data, stated if size is None else size)


def _end(member: Member) -> int:
    return member.offset + (0 if member.kind in WITHOUT_DATA else _rounded(member.size))


def _read(stream: BinaryIO, at: int, size: int) -> bytes:
    stream.seek(at)
    content = stream.read(size)
    if len(content) != size:
        raise HeaderError("was cut short: it has no end" if size == BLOCK else "was cut short inside a header")
    return content


def _checked_size(header: bytes, first: bool) -> int:
    """The size that a header states."""
    try:
        stated = _number(header[148:156], 8)
        # Some tools add the bytes as numbers from -128 to 127.
        right = stated == 256 + sum(header) - sum(header[148:156]) or stated == 256 + sum(_SIGNED.unpack(header))
    except HeaderError:
        right = False
    if not right:
        raise HeaderError("is not a whole, uncompressed tar file: no header" if first else "has a damaged header")
    return _number(header[124:136], 8)


def _number(field: bytes, base: int) -> int:
    """Digits, or GNU's binary numbers, which begin with the byte 128 (255: negative)."""
    if base == 8 and field[:1] in (b"\x80", b"\xff"):
        number = int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    else:
        digits = field.partition(b"\0")[0].strip()
        legal = b"01234567" if base == 8 else b"0123456789"
        number = int(digits[:32] or b"0", base) if not digits.strip(legal) and len(digits) <= 32 else -1
    if not 0 <= number <= LARGEST_FILE:
        raise HeaderError(f"has the size {field[:32]!r} in a header, which no file has,")
    return number


def _records(content: bytes) -> dict[bytes, bytes]:
    """The attributes in a pax header: `LENGTH KEY=VALUE\\n`, one after the other."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(content) and content[at] != 0:
        length, space, _ = content[at : at + 10].partition(b" ")
        end = at + (int(length) if length.isdigit() else 0)
        key, equals, value = content[at + len(length) + 1 : end - 1].partition(b"=")
        if not space or not equals or end > len(content) or content[end - 1 : end] != b"\n":
            raise HeaderError("has a damaged header of extended attributes")
        records.setdefault(key, value)
        at = end
    return records


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _rounded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
