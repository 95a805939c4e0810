"""Small picture files of every container, color mode and depth that can be written here."""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 13, 17
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
FORMS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
REFUSED = ("DDS", "DIB", "ICO", "IM", "MSP", "PCX", "QOI", "SGI", "SPIDER", "TGA", "XBM")


def file_of(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def photo(mode: str = "RGB") -> Image.Image:
    """Noise; with alpha, a channel with 0, 255 and values between."""
    image = Image.fromarray(RGB)
    if mode in ("LA", "RGBA"):
        image = image.convert(mode[:-1])
        alpha = RGB[:, :, 1].copy()
        alpha[:4], alpha[4:8] = 0, 255
        image.putalpha(Image.fromarray(alpha))
    return image.convert(mode)


def tagged(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png(values: np.ndarray, kind: int, bits: int, key: bytes = b"", size: tuple[int, int] | None = None) -> bytes:
    """A PNG of color type `kind`; `values` (H, W[, C]) below 2 ** bits; `key`: its tRNS chunk; `size`: what its header says."""
    height, width = values.shape[:2]
    rows = values.reshape(height, -1).astype(np.uint16)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        digits = (rows[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
        lines = [np.packbits(row).tobytes() for row in digits.reshape(height, -1).astype(np.uint8)]
    header = struct.pack(">IIBBBBB", *(size or (width, height)), bits, kind, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        *([(b"tRNS", key)] if key else []),
        (b"IDAT", zlib.compress(b"".join(b"\0" + x for x in lines))),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in (*chunks, (b"IEND", b"")))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@functools.cache
def every_container() -> dict[str, bytes]:
    """Container and mode -> a file, for every mode that the container takes."""
    files: dict[str, bytes] = {}
    for form in FORMS:
        for mode in ("RGB", "RGBA", "L", "P", "1", "CMYK", "F"):
            try:
                files[f"{form} {mode}"] = file_of(photo(mode), form, **({"exif": tagged(6)} if form in ("JPEG", "PNG") else {}))
            except (OSError, ValueError, KeyError, SystemError):  # not a mode of this container, or not in this build
                continue
    return files


def _tiff_header(side: int) -> bytes:
    """Of a bilevel picture without pixels."""
    tags = [(256, 4, side), (257, 4, side), (258, 3, 1), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 4, side), (279, 4, 8)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


BOMBS = {
    "PNG": png(np.zeros((1, 1)), 0, 1, size=(60_000, 60_000)),
    "WEBP": b"RIFF\xff\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\xff\x3f\0" * 2 + b"ANIM\6\0\0\0" + bytes(6),
    "GIF": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\0",
    "PPM": b"P6 60000 60000 255\n",
    "TIFF": _tiff_header(60_000),
    "BMP": b"BM" + struct.pack("<IIIIiiHHIIIIII", 100, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
}
"""Small files that claim to hold thousands of millions of pixels."""
