"""What the headers of JPEG, PNG and WebP files say, without decoding them: a few microseconds.

JPEG: ITU-T T.81 appendix B, and Exif 2.32 for APP1. PNG: W3C, third edition. WebP: RFC 9649.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

ORIENTATION = 0x0112
"""EXIF tag: 1 is upright, 2 to 8 are the other turns and mirrors of a rectangle."""
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
"""Beginnings of a JPEG's APP1 segments."""
RAW_EXIF = b"Raw profile type exif"
"""Beginning of a PNG's text chunk, as older tools write EXIF."""
START_OF_FRAME = {0xC0 + k for k in range(16)} - {0xC4, 0xC8, 0xCC}
WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
FIRST_MARKER = 0xC0
APP1, END_OF_IMAGE, START_OF_SCAN = 0xE1, 0xD9, 0xDA
WEBP_ANIMATED, WEBP_XMP, WEBP_EXIF, WEBP_ALPHA = 0x02, 0x04, 0x08, 0x10
"""Flags of a VP8X chunk."""


@dataclass(frozen=True)
class Header:
    form: str
    """JPEG, PNG or WEBP."""
    width: int
    height: int
    """Pixels as stored, before any turn."""
    plain: bool
    """One frame, opaque, and no tag that may turn it: every decoder gives the same picture."""
    fast: bool
    """Torchvision decodes it as Pillow does: grey or RGB of 8 bits, and not a PNG (its decoder for PNG ends the process when a
    byte of the pixels is wrong)."""


def header_of(data: bytes) -> Header | None:
    """None for another container, and where the header is damaged or unusual: then Pillow must say."""
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
    except (IndexError, struct.error):  # it ends within the header
        return None
    return None


def _jpeg(data: bytes) -> Header | None:
    frame: tuple[int, int, int, int] | None = None
    upright, at = True, 2
    # Decoders skip what is not a marker, each in its own way: then the size read here might not be the one that is decoded.
    while (marker := data[at + 1]) not in (START_OF_SCAN, END_OF_IMAGE):
        if data[at] != 0xFF or (marker < FIRST_MARKER and marker not in WITHOUT_LENGTH):
            return None
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in WITHOUT_LENGTH:
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2 or (marker in START_OF_FRAME and frame is not None):
            return None
        segment = data[at + 4 : at + 2 + length]
        if marker in START_OF_FRAME:
            frame = struct.unpack_from(">BHHB", segment)
        elif marker == APP1 and segment.startswith(EXIF):
            upright &= not turned_by_exif(segment[len(EXIF) :])
        elif marker == APP1 and segment.startswith(XMP):
            upright &= not _turned_by_xmp(segment)
        at += 2 + length
    if frame is None or data[at] != 0xFF:
        return None
    bits, height, width, channels = frame
    return Header("JPEG", width, height, upright, bits == 8 and channels in (1, 3))


def _png(data: bytes) -> Header | None:
    width, height, kind = struct.unpack_from(">IIxB", data, 16)
    plain, pixels, at = kind in (0, 2, 3), False, 8
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if name == b"IDAT":
            pixels = True
        elif name in (b"tRNS", b"acTL"):
            plain = False
        elif name == b"eXIf":  # before or after the pixels
            plain &= not turned_by_exif(data[at + 8 : at + 8 + length])
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            text = data[at + 8 : at + 8 + length]
            plain &= not (text.startswith(RAW_EXIF) or _turned_by_xmp(text))
        at += 12 + length
    return Header("PNG", width, height, plain, fast=False) if pixels and data[12:16] == b"IHDR" else None


def _webp(data: bytes) -> Header | None:
    kind = data[12:16]
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("WEBP", width & 0x3FFF, height & 0x3FFF, True, True)
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return Header("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, not bits >> 28 & 1, True)
    if kind == b"VP8X":
        flags = data[20]
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        turned = bool(flags & WEBP_XMP) and _turned_by_xmp(data)
        exif = data.rfind(b"EXIF") if flags & WEBP_EXIF else -1
        if exif > 0:
            turned |= turned_by_exif(data[exif + 8 :].removeprefix(EXIF))
        return Header("WEBP", width, height, not (flags & (WEBP_ALPHA | WEBP_ANIMATED) or turned), True)
    return None


def turned_by_exif(exif: bytes) -> bool:
    """Whether the first directory has an orientation other than 1; True also for blocks of an unusual form."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return True
    (first,) = struct.unpack_from(f"{order}I", exif, 4)
    if first + 2 > len(exif):
        return False
    (entries,) = struct.unpack_from(f"{order}H", exif, first)
    for at in range(first + 2, min(first + 2 + 12 * entries, len(exif) - 11), 12):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, at)
        if tag == ORIENTATION:
            return value != 1
    return False


def _turned_by_xmp(data: bytes) -> bool:
    return b"tiff:Orientation" in data and re.search(rb'tiff:Orientation(?:="|>)(?!1)', data) is not None
