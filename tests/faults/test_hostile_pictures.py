"""Hostile pictures: too many pixels, containers in containers, two sizes, truncated files. Each is refused by name."""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from torchvision.io import decode_image

from megaunigame.data.decode import decode_sample
from megaunigame.errors import DataError
from megaunigame.pictures.pillow import opened, rgb_image
from megaunigame.pictures.reading import read_picture
from megaunigame.pictures.rules import MAX_PIXELS, PictureError, PictureRules
from tests.data.picture_files import BOMBS, file_of, photo, png
from tests.data.shard_files import sample_fields

pytestmark = pytest.mark.timeout(60)


@functools.cache
def palette_bomb(side: int) -> bytes:
    """A PNG of ids, one color, of any side: 1 bit a pixel."""
    rows = zlib.compress(bytes(1 + side // 8) * side, 9)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 3, 0, 0, 0)),
        (b"PLTE", bytes(6)),
        (b"IDAT", rows),
        (b"IEND", b""),
    ]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.fault(
    "a small file that decodes to thousands of millions of pixels (7f, 7g)", does="counts a bad sample", lost="the sample"
)
@pytest.mark.parametrize("field", ["png", "seg.png", "depth.png", "picture2.png"])
def test_pictures_of_too_many_pixels(field):
    bomb = palette_bomb(30_000)
    assert len(bomb) < 200_000
    sample = decode_sample("a", {"json": b"{}", "png": sample_fields(0)["png"], field: bomb})
    with pytest.raises(DataError, match=rf"Sample 'a': field '{field}' .*900,000,000 pixels, more than the {MAX_PIXELS:,}"):
        sample.decoded()


@pytest.mark.parametrize("form", BOMBS)
def test_bombs_of_every_container(form):
    for reader in (read_picture, lambda data, rules: rgb_image(data, rules)):
        with pytest.raises(PictureError):
            reader(BOMBS[form], PictureRules())


def iptc(inner: bytes, side: int = 16) -> bytes:
    """A container that says `side` x `side`; Pillow would open what it holds as any container, EPS among them."""

    def field(group: int, number: int, value: bytes) -> bytes:
        return bytes([0x1C, group, number]) + struct.pack(">H", len(value)) + value

    said = [(60, b"\1\0"), (20, struct.pack(">I", side)), (30, struct.pack(">I", side)), (120, b"\0\0\0\5")]
    parts = [inner[at : at + 100] for at in range(0, len(inner), 100)]
    return b"".join(field(3, *one) for one in said) + b"".join(field(8, 10, part) for part in parts) + bytes(5)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"


def test_a_container_with_a_picture_inside(monkeypatch):
    """The directory of an ICO says 16 x 16; the PNG in it is larger. An EPS, in anything, would start Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript was started"))
    inner = png(np.zeros((300, 300)), 0, 1)
    ico = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    for data in (ico, iptc(inner), iptc(EPS), EPS):
        with pytest.raises(PictureError, match="^not an image in AVIF, BMP, "):
            rgb_image(data, PictureRules(max_pixels=10_000))
    # For Pillow alone the same file is a larger picture.
    with Image.open(io.BytesIO(iptc(inner))) as alone:
        alone.load()
        assert alone.size == (16, 16) and alone.convert("RGB").size == (300, 300)


def test_the_pixels_count_not_what_the_container_says(monkeypatch):
    """Of a container whose `size` stays what its header says."""
    monkeypatch.setattr("megaunigame.pictures.pillow.known_containers", lambda: ("IPTC",))
    inner = png(np.zeros((300, 300)), 0, 1)
    with pytest.raises(PictureError, match="300 x 300 = 90,000 pixels, more than the 10,000"):
        rgb_image(iptc(inner), PictureRules(max_pixels=10_000))


def jpeg_with_two_sizes() -> bytes:
    """A decoder that skips the bytes 255, 0 sees the true header, 64 x 64; one that takes them for a segment sees 1 x 1."""
    real = file_of(photo().resize((64, 64)), "JPEG")
    small = b"\xff\xc0\x00\x0b\x08\x00\x01\x00\x01\x01\x01\x11\x00" + b"\xff\xda\x00\x02"
    hidden = b"\xff\x00\x00\x06\xff\xe5" + struct.pack(">H", 2 + len(small))
    return real[:2] + hidden + small + real[2:]


def test_a_jpeg_cannot_hide_its_size_from_the_limit():
    """The limit is kept by a header that says 1 x 1, and the decoder makes 64 x 64 of the same bytes."""
    hiding = jpeg_with_two_sizes()
    assert decode_image(torch.frombuffer(bytearray(hiding), dtype=torch.uint8)).shape == (3, 64, 64)
    with pytest.raises(PictureError, match="64 x 64 = 4,096 pixels"):
        read_picture(hiding, PictureRules(max_pixels=100))


def test_truncated_and_animated_pictures():
    whole = file_of(photo(), "PNG")
    with pytest.raises(PictureError):
        read_picture(whole[: len(whole) // 2], PictureRules())
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")] * 50
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert read_picture(out.getvalue(), PictureRules()).shape == (3, 20, 20)
    with pytest.raises(PictureError), opened(EPS, PictureRules()):
        pass
