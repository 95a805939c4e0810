"""Pictures of any container, read by Pillow: the first frame, upright, on the ground, 8-bit RGB.

Color profiles are not applied; CMYK, LAB and YCbCr become RGB as Pillow converts them.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from megaunigame.pictures.greys import WIDE_MODES, eight_bits
from megaunigame.pictures.header import ORIENTATION, header_of
from megaunigame.pictures.rules import PictureError, PictureRules

CONTAINERS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may open: the containers that data sets have; MPO is opened as JPEG. None of them holds a file of another
container. Others do (IPTC, ICO, ICNS), are handed to other programs (EPS, WMF), or take minutes (FITS)."""
PNG_BITS = 24
"""Offset of the bit depth in a PNG."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""

HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
"""Of the containers that phones write and Pillow does not know."""


@functools.cache
def known_containers() -> tuple[str, ...]:
    """Those of `CONTAINERS` that this Pillow has: AVIF came with version 11.2, and is a choice when Pillow is built."""
    Image.init()
    return tuple(name for name in CONTAINERS if name in Image.OPEN)


@contextmanager
def opened(data: bytes, rules: PictureRules, formats: tuple[str, ...] = ()) -> Iterator[Image.Image]:
    """The first frame as stored, not decoded yet; `formats`: legal containers, empty for `known_containers`.

    Raises PictureError, also for any error inside the `with` block.
    """
    header = header_of(data)
    if header is not None:  # Pillow takes memory for a WebP picture when it opens it
        rules.check_size(header.width, header.height)
    if Image.MAX_IMAGE_PIXELS is not None:  # Pillow's own limit may stay, but must not forbid what these rules allow
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, rules.max_pixels)
    formats = formats or known_containers()
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            rules.check_size(*image.size)
            yield image
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
            raise PictureError("a HEIC picture, which Pillow alone cannot read: convert it, to JPEG for example") from error
        raise PictureError(f"not an image in {', '.join(formats)}") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"more pixels than the {rules.max_pixels:,} that max_pixels allows ({error})") from error
    # Plugins raise whatever a damaged byte leads to: SyntaxError, struct.error, zlib.error, OverflowError, RecursionError,
    # MemoryError and more. None of them may end a run.
    except Exception as error:
        raise PictureError(f"damaged image: {str(error) or type(error).__name__}") from error


def rgb_image(data: bytes, rules: PictureRules) -> Image.Image:
    """The picture as a viewer shows it. Raises PictureError."""
    with opened(data, rules) as image:
        image.load()
        rules.check_size(*image.size)
        turn = TURNS.get(orientation_of(image))
        shown = _on_ground(image, data, rules.ground)
        rules.check_size(*shown.size)  # of the pixels themselves; `image.size` is what the container says
        return shown if turn is None else shown.transpose(turn)


def rgb_of(image: Image.Image, rules: PictureRules) -> Image.Image:
    """The same of a picture that Pillow holds already. Raises PictureError."""
    rules.check_size(*image.size)
    try:
        image.load()
        turn = TURNS.get(orientation_of(image))
        shown = _laid(eight_bits(image) if image.mode in WIDE_MODES else image, rules.ground)
    except (OSError, SyntaxError, ValueError) as error:  # of a file that is read only now
        raise PictureError(f"damaged image: {str(error) or type(error).__name__}") from error
    return shown if turn is None else shown.transpose(turn)


def orientation_of(image: Image.Image) -> int:
    """The tag that is still to be applied: Pillow applies that of TIFF itself when it loads the picture.

    1 also when the EXIF block is damaged: viewers then show the picture as it is stored.
    """
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # as in `opened`
        return 1
    return found if isinstance(found, int) else 1


def changes_of(data: bytes, rules: PictureRules) -> list[str]:
    """How what is read differs from what is stored: "turned", "transparent", "animated". Raises PictureError."""
    header = header_of(data)
    if header is not None and header.plain:
        return []
    with opened(data, rules) as image:
        seen = {
            "turned": orientation_of(image) in TURNS,
            "transparent": image.has_transparency_data,
            "animated": getattr(image, "is_animated", False),
        }
        return [name for name, holds in seen.items() if holds]


def _on_ground(image: Image.Image, data: bytes, ground: tuple[int, int, int]) -> Image.Image:
    if image.mode in WIDE_MODES:
        image = eight_bits(image)
    elif image.format == "PNG" and image.mode in ("1", "L", "RGB") and "transparency" in image.info:
        image = _keyed(image, data[PNG_BITS])
    return _laid(image, ground)


def _laid(image: Image.Image, ground: tuple[int, int, int]) -> Image.Image:
    """RGB, on the ground where it is transparent."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    shown = Image.new("RGB", image.size, ground)
    shown.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return shown


def _keyed(image: Image.Image, bits: int) -> Image.Image:
    """A PNG with one transparent color, in mode L or RGB, the key as deep as the pixels.

    Pillow keeps the key as stored, but of 16-bit colors the high bytes, and greys of 1 to 4 bits stretched to 0..255.
    """
    key = image.info["transparency"]
    keyed = image.convert("RGB" if image.mode == "RGB" else "L")
    if isinstance(key, tuple):
        keyed.info["transparency"] = tuple(channel >> max(0, bits - 8) for channel in key)
    else:
        keyed.info["transparency"] = min(255, key * 255 // (2**bits - 1))  # of 1 bit, Pillow may have stretched it already
    return keyed
